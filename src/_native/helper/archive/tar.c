/* Reader of untrusted tar streams: every number is checked and every buffer is bounded. */
#include "tar.h"
#include "number.h"
#include "stream.h"
#include "wire.h"

#define EINTR_ 4

void
pc_tar_open (struct pc_tar *tar, int fd, void *memory)
{
  u8 *at = memory;
  memset (tar, 0, sizeof *tar);
  tar->fd = fd;
  tar->buffer = at;
  tar->regions = (struct pc_tar_region *) (void *) (at + PC_TAR_BUFFER);
  tar->extended = at + PC_TAR_BUFFER + PC_TAR_REGIONS_MOST * sizeof (struct pc_tar_region);
}

int
pc_tar_fill (struct pc_tar *tar, usize wanted)
{
  if (tar->start == tar->end)
    tar->start = tar->end = 0;
  if (tar->start + wanted > PC_TAR_BUFFER)
    {
      memcpy (tar->buffer, tar->buffer + tar->start, tar->end - tar->start);
      tar->end -= tar->start;
      tar->start = 0;
    }
  while (tar->end - tar->start < wanted)
    {
      word got = sys_read (tar->fd, tar->buffer + tar->end, PC_TAR_BUFFER - tar->end);
      if (got == -EINTR_)
        continue;
      if (got < 0)
        {
          tar->error = (i32) -got;
          return -PC_UNPACK_READ;
        }
      if (got == 0)
        return tar->end == tar->start ? 0 : -PC_UNPACK_TRUNCATED;
      tar->end += (usize) got;
    }
  return 1;
}

word
pc_tar_data (struct pc_tar *tar, u64 most, const u8 **data)
{
  if (tar->left < most)
    most = tar->left;
  if (most == 0)
    return 0;
  if (tar->start == tar->end)
    {
      int got = pc_tar_fill (tar, 1);
      if (got <= 0)
        return got < 0 ? got : -PC_UNPACK_TRUNCATED;
    }
  usize there = tar->end - tar->start;
  if (there > most)
    there = (usize) most;
  *data = tar->buffer + tar->start;
  tar->start += there;
  tar->left -= there;
  tar->skip -= there;
  return (word) there;
}

/* Skip the rest of an entry's data and its padding. */
static int
skip (struct pc_tar *tar)
{
  while (tar->skip > 0)
    {
      if (tar->start == tar->end)
        {
          int got = pc_tar_fill (tar, 1);
          if (got <= 0)
            return got < 0 ? got : -PC_UNPACK_TRUNCATED;
        }
      usize there = tar->end - tar->start;
      if (there > tar->skip)
        there = (usize) tar->skip;
      tar->start += there;
      tar->skip -= there;
    }
  tar->left = 0;
  return 1;
}

int
pc_tar_drain (struct pc_tar *tar)
{
  for (;;)
    {
      tar->start = tar->end = 0;
      int got = pc_tar_fill (tar, 1);
      if (got <= 0)
        return got;
    }
}

static int
take_data (struct pc_tar *tar, u8 *out, usize size)
{
  while (size > 0)
    {
      const u8 *data;
      word got = pc_tar_data (tar, size, &data);
      if (got <= 0)
        return got < 0 ? (int) got : -PC_UNPACK_TRUNCATED;
      memcpy (out, data, (usize) got);
      out += got;
      size -= (usize) got;
    }
  return 1;
}

static int
is_zero (const u8 *block)
{
  for (u32 i = 0; i < PC_TAR_BLOCK; i++)
    if (block[i] != 0)
      return 0;
  return 1;
}

/* Checksum with blanks in its own field; some programs sum signed bytes. */
static int
sum_is_right (const u8 *block)
{
  i64 plain = 0;
  i64 with_sign = 0;
  u64 said;

  for (u32 i = 0; i < PC_TAR_BLOCK; i++)
    {
      u8 byte = i >= 148 && i < 156 ? ' ' : block[i];
      plain += byte;
      with_sign += (signed char) byte;
    }
  return pc_parse_field (block + 148, 8, &said) == 0 && ((i64) said == plain || (i64) said == with_sign);
}

static void
begin_data (struct pc_tar *tar, u64 size)
{
  tar->left = size;
  tar->skip = (size + PC_TAR_BLOCK - 1) / PC_TAR_BLOCK * PC_TAR_BLOCK;
}

/* Read the data of an extended header. */
static int
read_extension (struct pc_tar *tar, u64 size, void *out, usize most, int problem)
{
  if (size > most)
    return -problem;
  begin_data (tar, size);
  int done = take_data (tar, out, (usize) size);
  ((u8 *) out)[size] = '\0';
  return done < 0 ? done : skip (tar);
}

static int
copy_text (char *out, const u8 *field, usize size)
{
  usize n = 0;
  while (n < size && field[n] != '\0')
    {
      out[n] = (char) field[n];
      n++;
    }
  out[n] = '\0';
  return (int) n;
}

static void
read_names (struct pc_tar *tar, const u8 *block, struct pc_tar_entry *entry)
{
  int prefixed = memcmp (block + 257, "ustar\0", 6) == 0;
  usize n = prefixed ? (usize) copy_text (tar->name, block + 345, 155) : 0;
  if (n > 0)
    tar->name[n++] = '/';
  copy_text (tar->name + n, block, 100);
  copy_text (tar->link, block + 157, 100);
  entry->name = tar->name;
  entry->link = tar->link;
}

static int
read_numbers (const u8 *block, struct pc_tar_entry *entry)
{
  u64 mode;
  u64 major = 0;
  u64 minor = 0;

  if (pc_parse_field (block + 100, 8, &mode) < 0 || pc_parse_field (block + 108, 8, &entry->uid) < 0
      || pc_parse_field (block + 116, 8, &entry->gid) < 0 || pc_parse_field (block + 124, 12, &entry->stored) < 0
      || pc_parse_signed_field (block + 136, 12, &entry->seconds) < 0)
    return -PC_UNPACK_NUMBER;
  char type = (char) block[156];
  if ((type == PC_TAR_CHARACTER || type == PC_TAR_BLOCK_DEVICE)
      && (pc_parse_field (block + 329, 8, &major) < 0 || pc_parse_field (block + 337, 8, &minor) < 0
          || major > 0xfff || minor > 0xfffff))
    return -PC_UNPACK_NUMBER;
  entry->type = type;
  entry->mode = (u32) mode & 07777;
  entry->major = (u32) major;
  entry->minor = (u32) minor;
  return 1;
}

/* One record "LENGTH KEY=VALUE\n" of an extended header. The first pass replaces its newline by a NUL, which a
   second pass (`again`) has to expect. */
struct record
{
  char *key;
  char *value;
  usize size;
};

static int
next_record (u8 *text, usize size, usize *at, struct record *record, int again)
{
  if (*at == size)
    return 0;
  usize begin = *at;
  u64 length = 0;
  usize digits = 0;
  while (begin + digits < size && text[begin + digits] >= '0' && text[begin + digits] <= '9' && digits < 9)
    length = length * 10 + (u64) (text[begin + digits++] - '0');
  if (digits == 0 || length > size - begin || length < digits + 4 || text[begin + digits] != ' ')
    return -PC_UNPACK_EXTENDED;
  u8 *end = text + begin + length - 1;
  u8 *key = text + begin + digits + 1;
  u8 *equals = key;
  while (equals < end && *equals != '=' && *equals != '\0')
    equals++;
  if (equals == end || *equals != '=' || equals == key || (*end != '\n' && !(again && *end == '\0')))
    return -PC_UNPACK_EXTENDED;
  *end = '\0';
  record->key = (char *) key;
  record->value = (char *) equals + 1;
  record->size = (usize) (end - equals - 1);
  *at = begin + (usize) length;
  return 1;
}

static int
is_key (const struct record *record, const char *key, usize size)
{
  /* The key still ends with its '='. */
  usize n = (usize) (record->value - record->key) - 1;
  return n == size && memcmp (record->key, key, size) == 0;
}
#define IS(record, text) is_key (record, text, sizeof (text) - 1)

static int
sparse_record (struct pc_tar *tar, const struct record *record, struct pc_sparse *sparse, char **name)
{
  u64 value = 0;
  int number = pc_parse_decimal (record->value, record->size, &value);

  if (IS (record, "GNU.sparse.name"))
    {
      if (pc_strlen (record->value) != record->size)
        return -PC_UNPACK_NAME;
      *name = record->value;
      return 1;
    }
  if (IS (record, "GNU.sparse.map"))
    {
      sparse->map = record->value;
      sparse->is_sparse = 1;
      return 1;
    }
  if (number < 0)
    return -PC_UNPACK_SPARSE;
  if (IS (record, "GNU.sparse.size") || IS (record, "GNU.sparse.realsize"))
    {
      sparse->size = value;
      sparse->is_sparse = 1;
    }
  else if (IS (record, "GNU.sparse.major"))
    sparse->major = (u32) value;
  else if (IS (record, "GNU.sparse.offset"))
    {
      sparse->pending = 1;
      return pc_sparse_add (tar, sparse, value, 0);
    }
  else if (IS (record, "GNU.sparse.numbytes"))
    {
      if (!sparse->pending)
        return -PC_UNPACK_SPARSE;
      sparse->pending = 0;
      tar->regions[sparse->count - 1].size = value;
    }
  return 1;
}

static int
apply_record (struct pc_tar *tar, const struct record *record, struct pc_tar_entry *entry, struct pc_sparse *sparse,
              char **sparse_name)
{
  int is_name = IS (record, "path");

  if (is_name || IS (record, "linkpath"))
    {
      if (pc_strlen (record->value) != record->size)
        return -PC_UNPACK_NAME;
      if (record->size > 0)
        *(is_name ? &entry->name : &entry->link) = record->value;
      return 1;
    }
  if (record->size == 0)
    return 1; /* an empty value revokes a global header's; those are not kept */
  if (IS (record, "size"))
    return pc_parse_decimal (record->value, record->size, &entry->stored) < 0 ? -PC_UNPACK_NUMBER : 1;
  if (IS (record, "uid"))
    return pc_parse_decimal (record->value, record->size, &entry->uid) < 0 ? -PC_UNPACK_NUMBER : 1;
  if (IS (record, "gid"))
    return pc_parse_decimal (record->value, record->size, &entry->gid) < 0 ? -PC_UNPACK_NUMBER : 1;
  if (IS (record, "mtime"))
    return pc_parse_time (record->value, record->size, &entry->seconds, &entry->nanoseconds) < 0
               ? -PC_UNPACK_NUMBER
               : 1;
  if (record->value - record->key > 11 && memcmp (record->key, "GNU.sparse.", 11) == 0)
    return sparse_record (tar, record, sparse, sparse_name);
  return 1;
}

static int
has_data (char type)
{
  return type == PC_TAR_FILE || type == '\0' || type == '7' || type == 'S';
}

static int
apply_extended (struct pc_tar *tar, struct pc_tar_entry *entry, struct pc_sparse *sparse)
{
  usize at = 0;
  struct record record;
  char *sparse_name = NULL;
  int more;

  while ((more = next_record (tar->extended, tar->extended_size, &at, &record, 0)) > 0)
    {
      more = apply_record (tar, &record, entry, sparse, &sparse_name);
      if (more < 0)
        return more;
    }
  /* On a file that is not sparse it would be a second name that other readers ignore. */
  if (more == 0 && sparse_name != NULL && sparse->is_sparse && has_data (entry->type))
    entry->name = sparse_name;
  return more < 0 ? more : sparse->pending ? -PC_UNPACK_SPARSE : 1;
}

int
pc_tar_attribute (const struct pc_tar *tar, usize *at, const char **name, const u8 **value, usize *size)
{
  static const char prefix[] = "SCHILY.xattr.";
  struct record record;

  while (next_record (tar->extended, tar->extended_size, at, &record, 1) > 0)
    {
      usize n = (usize) (record.value - record.key) - 1;
      if (n <= sizeof prefix - 1 || memcmp (record.key, prefix, sizeof prefix - 1) != 0)
        continue;
      record.value[-1] = '\0';
      *name = record.key + sizeof prefix - 1;
      *value = (const u8 *) record.value;
      *size = record.size;
      return 1;
    }
  return 0;
}

/* Parse an entry's header and apply the extended headers before it. */
static int
finish_entry (struct pc_tar *tar, const u8 *block, struct pc_tar_entry *entry)
{
  struct pc_sparse sparse = { 0 };
  int done = apply_extended (tar, entry, &sparse);

  if (done < 0)
    return done;
  if (tar->long_name[0] != '\0')
    entry->name = tar->long_name;
  if (tar->long_link[0] != '\0')
    entry->link = tar->long_link;
  if (entry->stored > 1ull << 62 || entry->uid > 0xfffffffe || entry->gid > 0xfffffffe)
    return -PC_UNPACK_NUMBER;
  if (pc_strlen (entry->name) >= PC_TAR_NAME_MOST)
    return -PC_UNPACK_NAME;
  if (pc_strlen (entry->link) >= PC_TAR_NAME_MOST)
    return -PC_UNPACK_LINK_NAME;
  if (entry->type == 'S')
    {
      sparse.is_sparse = 1;
      done = pc_sparse_read_header (tar, block, &sparse);
      if (done < 0)
        return done;
    }
  begin_data (tar, has_data (entry->type) ? entry->stored : 0);
  entry->size = tar->left;
  entry->stored = tar->left;
  if (sparse.is_sparse && has_data (entry->type))
    done = pc_sparse_read (tar, entry, &sparse);
  usize n = pc_strlen (entry->name);
  /* A trailing slash marked directories before they had a type. */
  if (has_data (entry->type))
    entry->type = entry->type == '\0' && n > 0 && entry->name[n - 1] == '/' ? PC_TAR_DIRECTORY : PC_TAR_FILE;
  return done;
}

static int
next_block (struct pc_tar *tar, u8 *block)
{
  int got = skip (tar);
  if (got > 0)
    got = pc_tar_fill (tar, PC_TAR_BLOCK);
  if (got <= 0)
    return got;
  memcpy (block, tar->buffer + tar->start, PC_TAR_BLOCK);
  tar->start += PC_TAR_BLOCK;
  return 1;
}

/* Two zero blocks end a stream; data after a single one would be hidden from other readers. */
static int
at_end (struct pc_tar *tar, u8 *block)
{
  int got = next_block (tar, block);
  return got < 0 ? got : got == 0 || is_zero (block) ? 0 : -PC_UNPACK_CHECKSUM;
}

int
pc_tar_next (struct pc_tar *tar, struct pc_tar_entry *entry)
{
  u8 block[PC_TAR_BLOCK];
  u32 extensions = 0;
  u32 globals = 0;

  tar->extended_size = 0;
  tar->long_name[0] = tar->long_link[0] = '\0';
  for (;;)
    {
      int got = next_block (tar, block);
      if (got <= 0)
        return got < 0 ? got : extensions > 0 ? -PC_UNPACK_TRUNCATED : 0;
      if (is_zero (block))
        return extensions > 0 ? -PC_UNPACK_TRUNCATED : at_end (tar, block);
      memset (entry, 0, sizeof *entry);
      if (!sum_is_right (block))
        return -PC_UNPACK_CHECKSUM;
      got = read_numbers (block, entry);
      if (got < 0)
        return got;
      /* Bounds an endless chain of extended headers. */
      if (++extensions > 64)
        return -PC_UNPACK_EXTENDED;
      switch (entry->type)
        {
        case 'x':
          got = read_extension (tar, entry->stored, tar->extended, PC_TAR_EXTENDED_MOST, PC_UNPACK_EXTENDED_SIZE);
          tar->extended_size = (usize) entry->stored;
          break;
        case 'L':
          got = read_extension (tar, entry->stored, tar->long_name, PC_TAR_NAME_MOST, PC_UNPACK_NAME);
          break;
        case 'K':
          got = read_extension (tar, entry->stored, tar->long_link, PC_TAR_NAME_MOST, PC_UNPACK_LINK_NAME);
          break;
        case 'g': /* comments of git, names of volumes */
        case 'V':
          /* Readers disagree on whether earlier extended headers apply to the entry after it. */
          if (extensions > 1 + globals)
            return -PC_UNPACK_EXTENDED;
          globals++;
          if (entry->stored > PC_TAR_EXTENDED_MOST)
            return -PC_UNPACK_EXTENDED_SIZE;
          begin_data (tar, entry->stored);
          break;
        default:
          read_names (tar, block, entry);
          got = finish_entry (tar, block, entry);
          return got < 0 ? got : 1;
        }
      if (got < 0)
        return got;
    }
}
