/* Writer of reproducible tar headers. */
#include "header.h"
#include "wire.h"

#include <linux/errno.h>

int
pc_writer_flush (struct pc_writer *writer)
{
  usize done = 0;
  while (done < writer->used)
    {
      word got = sys_write (writer->fd, writer->buffer + done, writer->used - done);
      if (got == -EINTR)
        continue;
      if (got < 0)
        {
          writer->error = (i32) -got;
          return -1;
        }
      done += (usize) got;
    }
  writer->used = 0;
  return 0;
}

int
pc_writer_put (struct pc_writer *writer, const void *data, usize size)
{
  const u8 *at = data;
  while (size > 0)
    {
      usize room = PC_TAR_BUFFER - writer->used;
      usize part = size < room ? size : room;
      memcpy (writer->buffer + writer->used, at, part);
      writer->used += part;
      at += part;
      size -= part;
      if (writer->used == PC_TAR_BUFFER && pc_writer_flush (writer) < 0)
        return -1;
    }
  return 0;
}

int
pc_writer_pad (struct pc_writer *writer, u64 size)
{
  static const u8 zeros[PC_TAR_BLOCK];
  usize odd = (usize) (size % PC_TAR_BLOCK);
  return odd == 0 ? 0 : pc_writer_put (writer, zeros, PC_TAR_BLOCK - odd);
}

static int
fits_octal (u64 value, u32 digits)
{
  return value >> (3 * digits) == 0;
}

static void
put_octal (u8 *field, u64 value, u32 digits)
{
  if (!fits_octal (value, digits))
    value = 0; /* an extended header has the value */
  for (u32 i = digits; i-- > 0; value >>= 3)
    field[i] = (u8) ('0' + (value & 7));
}

/* "LENGTH KEY=VALUE\n", the length counting its own digits. */
static int
add_record (struct pc_writer *writer, const char *prefix, const char *key, const void *value, usize size)
{
  usize body = pc_strlen (prefix) + pc_strlen (key) + size + 3;
  char digits[24];
  usize n = pc_decimal (digits, body);
  n = pc_decimal (digits, body + n);
  n = pc_decimal (digits, body + n);
  usize whole = body + n;
  u8 *at = writer->extended + writer->extended_size;
  if (whole > PC_TAR_EXTENDED_MOST - writer->extended_size)
    {
      writer->error = E2BIG;
      return -1;
    }
  memcpy (at, digits, n);
  at += n;
  *at++ = ' ';
  memcpy (at, prefix, pc_strlen (prefix));
  at += pc_strlen (prefix);
  memcpy (at, key, pc_strlen (key));
  at += pc_strlen (key);
  *at++ = '=';
  memcpy (at, value, size);
  at[size] = '\n';
  writer->extended_size += whole;
  return 0;
}

static int
add_number (struct pc_writer *writer, const char *key, u64 value)
{
  char text[24];
  return add_record (writer, "", key, text, pc_decimal (text, value));
}

/* PAX counts the fraction of a negative time towards zero, the kernel towards the past. */
static int
add_time (struct pc_writer *writer, i64 seconds, u32 nanoseconds)
{
  char text[48];
  usize n = 0;
  int negative = seconds < 0;
  u64 whole = negative ? (u64) -seconds : (u64) seconds;

  if (negative && nanoseconds > 0)
    {
      whole -= 1;
      nanoseconds = 1000000000 - nanoseconds;
    }
  if (negative)
    text[n++] = '-';
  n += pc_decimal (text + n, whole);
  if (nanoseconds > 0)
    {
      text[n++] = '.';
      for (u32 i = 0, scale = 100000000; i < 9; i++, scale /= 10)
        text[n++] = (char) ('0' + nanoseconds / scale % 10);
      while (text[n - 1] == '0')
        n--;
    }
  return add_record (writer, "", "mtime", text, n);
}

static void
close_header (u8 *block)
{
  u32 sum = 8 * ' ';
  for (u32 i = 0; i < PC_TAR_BLOCK; i++)
    sum += block[i];
  put_octal (block + 148, sum, 6);
  block[154] = '\0';
  block[155] = ' ';
}

static int
put_header (struct pc_writer *writer, const struct pc_tar_entry *entry, const char *name, u64 size, char type)
{
  u8 block[PC_TAR_BLOCK];
  usize length = pc_strlen (name);
  usize link = entry->link != NULL ? pc_strlen (entry->link) : 0;
  i64 seconds = entry->seconds < 0 ? 0 : entry->seconds;

  memset (block, 0, sizeof block);
  memcpy (block, name, length < 100 ? length : 100);
  memcpy (block + 157, entry->link != NULL ? entry->link : "", link < 100 ? link : 100);
  put_octal (block + 100, entry->mode, 7);
  put_octal (block + 108, entry->uid, 7);
  put_octal (block + 116, entry->gid, 7);
  put_octal (block + 124, size, 11);
  put_octal (block + 136, (u64) seconds, 11);
  block[156] = (u8) type;
  memcpy (block + 257,
          "ustar\0"
          "00",
          8);
  put_octal (block + 329, entry->major, 7);
  put_octal (block + 337, entry->minor, 7);
  close_header (block);
  return pc_writer_put (writer, block, sizeof block);
}

static int
put_extended (struct pc_writer *writer)
{
  static char name[] = "PaxHeaders/entry";
  struct pc_tar_entry header = { .mode = 0644 };
  usize size = writer->extended_size;

  if (size == 0)
    return 0;
  if (put_header (writer, &header, name, size, 'x') < 0 || pc_writer_put (writer, writer->extended, size) < 0)
    return -1;
  return pc_writer_pad (writer, size);
}

#define SPARSE_PREFIX "GNUSparseFile.0/"

/* Add the PAX records of a sparse file (GNU tar, "PAX Format, Version 1.0"), whose map precedes its data, and the name
   under which other readers extract it. */
static int
add_sparse (struct pc_writer *writer, const struct pc_tar_entry *entry, char *name, usize room)
{
  usize size = pc_strlen (entry->name);
  usize cut = size;
  while (cut > 0 && entry->name[cut - 1] != '/')
    cut--;
  usize last = size - cut < room - sizeof SPARSE_PREFIX ? size - cut : room - sizeof SPARSE_PREFIX;
  memcpy (name, SPARSE_PREFIX, sizeof SPARSE_PREFIX);
  memcpy (name + sizeof SPARSE_PREFIX - 1, entry->name + cut, last);
  name[sizeof SPARSE_PREFIX - 1 + last] = '\0';
  int bad = add_number (writer, "GNU.sparse.major", 1);
  bad |= add_number (writer, "GNU.sparse.minor", 0);
  bad |= add_record (writer, "", "GNU.sparse.name", entry->name, size);
  return bad | add_number (writer, "GNU.sparse.realsize", entry->size);
}

int
pc_writer_entry (struct pc_writer *writer, const struct pc_tar_entry *entry, const struct pc_attribute *attributes,
                 u32 count)
{
  char placeholder[100];
  const char *name = entry->sparse ? placeholder : entry->name;
  u64 size = entry->sparse ? entry->stored : entry->size;
  int bad = 0;

  writer->extended_size = 0;
  if (entry->sparse)
    bad |= add_sparse (writer, entry, placeholder, sizeof placeholder);
  else if (pc_strlen (entry->name) > 100)
    bad |= add_record (writer, "", "path", entry->name, pc_strlen (entry->name));
  if (entry->link != NULL && pc_strlen (entry->link) > 100)
    bad |= add_record (writer, "", "linkpath", entry->link, pc_strlen (entry->link));
  if (!fits_octal (size, 11))
    bad |= add_number (writer, "size", size);
  if (!fits_octal (entry->uid, 7))
    bad |= add_number (writer, "uid", entry->uid);
  if (!fits_octal (entry->gid, 7))
    bad |= add_number (writer, "gid", entry->gid);
  if (entry->seconds < 0 || entry->nanoseconds > 0 || !fits_octal ((u64) entry->seconds, 11))
    bad |= add_time (writer, entry->seconds, entry->nanoseconds);
  for (u32 i = 0; i < count; i++)
    bad |= add_record (writer, "SCHILY.xattr.", attributes[i].name, attributes[i].value, attributes[i].size);
  if (bad != 0 || put_extended (writer) < 0)
    return -1;
  return put_header (writer, entry, name, size, entry->type);
}
