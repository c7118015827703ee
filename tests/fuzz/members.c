/* Members out of names, numbers and records that a reader of layers knows. */
#include "members.h"
#include "mutate.h"

#include <stdio.h>
#include <string.h>

#define RECORDS_MOST (10 * BLOCK)
#define CHOOSE(array) (array)[mutate_below (sizeof (array) / sizeof (array)[0])]

/* Few, so that they meet each other and what the layers below have. */
static const char *const names[] = {
  "a",     "a/b",      "a/b/c",       "a/file",      "etc",    "etc/",           "etc/deep/x", "l",         "l/x",
  "opq",   "opq/x",    "gone",        "gone/x",      "usr",    "usr/x",          "m",          "m/l",       "./",
  ".",     "..",       "../x",        "a/../x",      "/a/b",   "//a",            "a//b/./c",   "",          "/",
  ".wh.a", "a/.wh.b",  ".wh.etc",     ".wh.",        ".wh..",  ".wh...",         ".wh.m",      "a/.wh..wh..opq",
  ".wh..wh..opq",      "m/.wh..wh..opq", ".wh..wh.aufs", "a/.wh.b/c", ".wh.gone", "canary/file", "work",
};
static const char *const links[] = {
  "a",  "a/b", "etc", "m",  "l",  ".",   "..",        "../..",     "/",       "/etc",
  "/a", "l",   "m/l", "",   "gone", "../canary", "../../canary/file", "/proc/self/cwd", "a/file", "usr",
};
static const char types[] = { '0', '\0', '1', '2', '3', '4', '5', '6', '7', 'S', 'x', 'g', 'L', 'K', 'V', 'A', '5', '2' };
static const char *const keys[] = {
  "path",  "linkpath", "size", "uid", "gid", "mtime", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name",
  "GNU.sparse.realsize", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.offset", "GNU.sparse.numbytes",
  "GNU.sparse.numblocks", "SCHILY.xattr.user.a", "SCHILY.xattr.user.overlay.opaque",
  "SCHILY.xattr.security.capability", "SCHILY.xattr.trusted.x", "SCHILY.xattr.system.posix_acl_default",
  "SCHILY.xattr.", "comment",
};
static const char *const numbers[] = {
  "0", "1", "2", "511", "512", "513", "1000", "65535", "65536", "100000", "4294967294", "4294967295", "4294967296",
  "4611686018427387903", "4611686018427387904", "9223372036854775807", "18446744073709551616", "-1", "-1.5",
  "1.999999999999", "", ".5", "1.", "007", "0x1", "1e3",
};
static const uint64_t edges[] = {
  0, 1, 2, 10, 100, 511, 512, 513, 1024, 4095, 4096, 4097, 8191, 8192, 8193, 65535, 1 << 20, 1ull << 31, 1ull << 32,
  1ull << 33, 1ull << 62, (1ull << 63) - 1, 1ull << 63, ~0ull,
};

static void
put_octal (uint8_t *field, size_t digits, uint64_t value)
{
  for (size_t i = digits; i-- > 0; value >>= 3)
    field[i] = (uint8_t) ('0' + (value & 7));
}

/* GNU's way for what octal digits cannot say. */
static void
put_number (uint8_t *field, size_t size, uint64_t value)
{
  if (mutate_below (8) != 0 && (size >= 12 ? value >> 33 : value >> 21) == 0)
    {
      put_octal (field, size - 1, value);
      field[size - 1] = 0;
      return;
    }
  for (size_t i = size; i-- > 0; value >>= 8)
    field[i] = (uint8_t) (value & 0xff);
  field[0] = (uint8_t) (mutate_below (4) == 0 ? 0xff : 0x80 | field[0]);
}

size_t
member_size (const uint8_t *header)
{
  size_t size = 0;
  for (size_t i = 124; i < 136 && header[i] >= '0' && header[i] <= '7'; i++)
    size = size << 3 | (size_t) (header[i] - '0');
  return header[156] >= '1' && header[156] <= '6' ? 0 : size;
}

void
header_close (uint8_t *header)
{
  uint64_t sum = 8 * ' ';
  for (size_t i = 0; i < BLOCK; i++)
    sum += i >= 148 && i < 156 ? 0 : header[i];
  if (sum == 8 * ' ')
    return; /* an end */
  put_octal (header + 148, 6, sum);
  header[154] = 0;
  header[155] = ' ';
}

static void
put_text (uint8_t *field, size_t size, const char *text)
{
  size_t length = strlen (text);
  memset (field, 0, size);
  memcpy (field, text, length < size ? length : size);
}

void
header_change (uint8_t *header)
{
  switch (mutate_below (12))
    {
    case 0:
    case 1:
      put_text (header, 100, CHOOSE (names));
      break;
    case 2:
      put_text (header + 157, 100, CHOOSE (links));
      break;
    case 3:
    case 4:
      header[156] = (uint8_t) CHOOSE (types);
      break;
    case 5:
      put_number (header + 124, 12, mutate_below (2) ? CHOOSE (edges) : mutate_below (3000));
      break;
    case 6:
      put_number (header + 100, 8, mutate_below (010000));
      break;
    case 7:
      put_number (header + 108 + mutate_below (2) * 8, 8, CHOOSE (edges));
      break;
    case 8:
      put_number (header + 136, 12, CHOOSE (edges));
      break;
    case 9:
      put_number (header + 329 + mutate_below (2) * 8, 8, mutate_below (3));
      break;
    case 10:
      memcpy (header + 257, mutate_below (2) ? "ustar\0" "00" : "ustar  ", 8);
      break;
    default:
      put_text (header + 345, 155, CHOOSE (names));
      break;
    }
}

static size_t
put_header (uint8_t *out, char type, size_t size)
{
  memset (out, 0, BLOCK);
  put_text (out, 100, CHOOSE (names));
  put_octal (out + 100, 7, mutate_below (4) == 0 ? mutate_below (010000) : 0755);
  put_octal (out + 108, 7, mutate_below (3));
  put_octal (out + 116, 7, mutate_below (3));
  put_octal (out + 124, 11, size);
  put_octal (out + 136, 11, mutate_below (1 << 30));
  out[156] = (uint8_t) type;
  put_text (out + 157, 100, type == '1' || type == '2' ? CHOOSE (links) : "");
  put_octal (out + 329, 7, mutate_below (2));
  put_octal (out + 337, 7, mutate_below (4));
  memcpy (out + 257, "ustar\0" "00", 8);
  header_close (out);
  return BLOCK;
}

/* The data of the header at out, as far as it was written; padded. */
static size_t
pad (uint8_t *out, size_t size)
{
  size_t whole = (size + BLOCK - 1) / BLOCK * BLOCK;
  memset (out + size, 0, whole - size);
  return whole;
}

/* "offset,size,..." or the same in lines after their count; most of them in order. */
static size_t
put_map (char *out, size_t most, char between)
{
  size_t n = 0, at = 0;
  size_t pairs = mutate_below (16) == 0 ? mutate_below (80) : mutate_below (5);
  if (between == '\n')
    n += (size_t) snprintf (out, most, "%zu\n", mutate_below (16) == 0 ? pairs + 1 : pairs);
  for (size_t i = 0; i < pairs && n + 48 < most; i++)
    {
      size_t size = mutate_below (40);
      at += mutate_below (600);
      n += (size_t) snprintf (out + n, most - n, "%s%zu%c%zu%s", i > 0 && between == ',' ? "," : "", at, between,
                              size, between == '\n' ? "\n" : "");
      at += size;
    }
  return n;
}

static const char *
any_value (const char *key)
{
  static char text[5000];
  size_t long_name;
  if (strstr (key, "map") != NULL)
    {
      text[put_map (text, 600, ',')] = '\0';
      return text;
    }
  if (strcmp (key, "path") != 0 && strcmp (key, "linkpath") != 0 && strstr (key, "name") == NULL)
    return CHOOSE (numbers);
  if (mutate_below (8) != 0)
    return CHOOSE (names);
  /* The deepest take long to make and to remove: few of them. */
  long_name = mutate_below (8) == 0 ? 4080 + mutate_below (24) : mutate_below (400);
  size_t part = mutate_below (64) == 0 ? 2 : mutate_below (2) ? 128 : 64;
  for (size_t i = 0; i < long_name; i++)
    text[i] = i % part == 1 ? '/' : 'n';
  text[long_name] = '\0';
  return text;
}

static size_t
put_record (char *out, size_t most, const char *key)
{
  const char *value = any_value (key);
  size_t body = strlen (key) + strlen (value) + 3;
  size_t whole = body + 1;
  char digits[24];
  while (body + (size_t) snprintf (digits, sizeof digits, "%zu", whole) != whole)
    whole++;
  if (whole + 1 > most)
    return 0;
  if (mutate_below (32) == 0)
    snprintf (digits, sizeof digits, "%zu",
              mutate_below (2) ? whole + mutate_below (5) - 2 : (size_t) CHOOSE (edges) + mutate_below (5));
  return (size_t) snprintf (out, most, "%s %s=%s\n", digits, key, value);
}

static size_t
put_extended (uint8_t *out)
{
  char *text = (char *) out + BLOCK;
  size_t n = 0;
  for (size_t i = mutate_below (4) + 1; i > 0; i--)
    n += put_record (text + n, RECORDS_MOST > n ? RECORDS_MOST - n : 0, CHOOSE (keys));
  put_header (out, 'x', n);
  return BLOCK + pad (out + BLOCK, n);
}

static size_t
put_long (uint8_t *out)
{
  const char *text = any_value ("path");
  size_t n = strlen (text) + mutate_below (2);
  memcpy (out + BLOCK, text, n);
  put_header (out, mutate_below (2) ? 'L' : 'K', n);
  return BLOCK + pad (out + BLOCK, n);
}

/* GNU's own: pairs in the header, and in a block after it. */
static size_t
put_sparse (uint8_t *out)
{
  size_t pairs = mutate_below (6), at = 0, sum = 0, used = BLOCK;
  memset (out, 0, BLOCK * 2);
  put_header (out, 'S', 0);
  memcpy (out + 257, "ustar  ", 8);
  memset (out + 345, 0, 167);
  for (size_t i = 0; i < pairs; i++)
    {
      uint8_t *pair = i < 4 ? out + 386 + i * 24 : out + BLOCK + (i - 4) * 24;
      size_t size = mutate_below (30);
      at += mutate_below (700);
      put_number (pair, 12, at);
      put_number (pair + 12, 12, size);
      at += size;
      sum += size;
    }
  if (pairs > 4)
    {
      out[482] = 1;
      used += BLOCK;
    }
  put_number (out + 483, 12, at + mutate_below (100));
  put_octal (out + 124, 11, sum);
  header_close (out);
  memset (out + used, 's', sum);
  return used + pad (out + used, sum);
}

/* PAX's 1.0, whose map stands before the data. */
static size_t
put_leading (uint8_t *out)
{
  char records[200];
  size_t n = (size_t) snprintf (records, sizeof records, "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
                                "29 GNU.sparse.realsize=%05zu\n", mutate_below (9999));
  put_header (out, 'x', n);
  memcpy (out + BLOCK, records, n);
  size_t used = BLOCK + pad (out + BLOCK, n);
  size_t map = put_map ((char *) out + used + BLOCK, 4 * BLOCK, '\n');
  size_t whole = pad (out + used + BLOCK, map);
  size_t data = mutate_below (100);
  put_header (out + used, '0', whole + data);
  memset (out + used + BLOCK + whole, 'd', data);
  return used + BLOCK + whole + pad (out + used + BLOCK + whole, data);
}

size_t
member_make (uint8_t *out)
{
  static size_t (*const special[]) (uint8_t *) = { put_extended, put_extended, put_long, put_sparse, put_leading };
  size_t used = mutate_below (3) == 0 ? CHOOSE (special) (out) : 0;
  char type = CHOOSE (types);
  size_t size = type == '0' || type == '7' ? mutate_below (600) : 0;

  put_header (out + used, type, size);
  memset (out + used + BLOCK, 'c', size);
  return used + BLOCK + pad (out + used + BLOCK, size);
}
