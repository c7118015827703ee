/* Strict parser of the numbers in tar headers. */
#include "number.h"

#define MOST (1ull << 62)

static int
parse_octal (const u8 *field, usize size, u64 *out)
{
  usize at = 0;
  u64 value = 0;

  while (at < size && field[at] == ' ')
    at++;
  for (; at < size && field[at] >= '0' && field[at] <= '7'; at++)
    {
      if (value >= MOST / 8)
        return -1;
      value = value * 8 + (u64) (field[at] - '0');
    }
  for (; at < size; at++)
    if (field[at] != ' ' && field[at] != '\0')
      return -1;
  *out = value;
  return 0;
}

/* Two's complement; the top bit of the first byte marks the encoding. */
static int
parse_binary (const u8 *field, usize size, i64 *out)
{
  int negative = (field[0] & 0x40) != 0;
  u64 value = 0;

  for (usize i = 0; i < size; i++)
    {
      u8 byte = field[i];
      if (i == 0)
        byte = (u8) (negative ? byte | 0x80 : byte & 0x7f);
      if (negative)
        byte = (u8) ~byte;
      if (value >= MOST >> 8)
        return -1;
      value = value << 8 | byte;
    }
  *out = negative ? -(i64) value - 1 : (i64) value;
  return 0;
}

int
pc_parse_signed_field (const u8 *field, usize size, i64 *out)
{
  u64 value = 0;
  if (field[0] & 0x80)
    return parse_binary (field, size, out);
  int result = parse_octal (field, size, &value);
  *out = (i64) value;
  return result;
}

int
pc_parse_field (const u8 *field, usize size, u64 *out)
{
  i64 value = 0;
  int result = pc_parse_signed_field (field, size, &value);
  *out = (u64) value;
  return result < 0 || value < 0 ? -1 : 0;
}

int
pc_parse_decimal (const char *text, usize size, u64 *out)
{
  u64 value = 0;
  if (size == 0)
    return -1;
  for (usize i = 0; i < size; i++)
    {
      if (text[i] < '0' || text[i] > '9' || value >= MOST / 10)
        return -1;
      value = value * 10 + (u64) (text[i] - '0');
    }
  *out = value;
  return 0;
}

int
pc_parse_time (const char *text, usize size, i64 *seconds, u32 *nanoseconds)
{
  usize at = 0;
  int negative = size > 0 && text[0] == '-';
  usize dot = (usize) negative;
  u64 whole;
  u32 parts = 0;
  u32 scale = 100000000;

  while (dot < size && text[dot] != '.')
    dot++;
  at = (usize) negative;
  if (pc_parse_decimal (text + at, dot - at, &whole) < 0)
    return -1;
  for (at = dot + 1; at < size; at++, scale /= 10)
    {
      if (text[at] < '0' || text[at] > '9')
        return -1;
      parts += (u32) (text[at] - '0') * scale;
    }
  *seconds = negative ? -(i64) whole : (i64) whole;
  *nanoseconds = parts;
  if (negative && parts > 0)
    {
      *seconds -= 1;
      *nanoseconds = 1000000000 - parts;
    }
  return 0;
}
