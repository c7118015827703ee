/* Reader of untrusted tar streams: every number is checked and every buffer is bounded. */
#include "tar.h"
#include "number.h"
#include "stream.h"
#include "wire.h"

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

/* Read the data of an extended header. */
static int
read_extension (struct pc_tar *tar, u64 size, void *out, usize most, int problem)
{
  if (size > most)
    return -problem;
  pc_tar_begin (tar, size);
  int done = pc_tar_take (tar, out, (usize) size);
  ((u8 *) out)[size] = '\0';
  return done < 0 ? done : pc_tar_skip (tar);
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
      && (pc_parse_field (block + 329, 8, &major) < 0 || pc_parse_field (block + 337, 8, &minor) < 0 || major > 0xfff
          || minor > 0xfffff))
    return -PC_UNPACK_NUMBER;
  entry->type = type;
  entry->mode = (u32) mode & 07777;
  entry->major = (u32) major;
  entry->minor = (u32) minor;
  return 1;
}

/* Parse an entry's header and apply the extended headers before it. */
static int
finish_entry (struct pc_tar *tar, const u8 *block, struct pc_tar_entry *entry)
{
  struct pc_sparse sparse = { 0 };
  int done = pc_tar_apply_extended (tar, entry, &sparse);

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
  pc_tar_begin (tar, pc_tar_has_data (entry->type) ? entry->stored : 0);
  entry->size = tar->left;
  entry->stored = tar->left;
  if (sparse.is_sparse && pc_tar_has_data (entry->type))
    done = pc_sparse_read (tar, entry, &sparse);
  usize n = pc_strlen (entry->name);
  /* A trailing slash marked directories before they had a type. */
  if (pc_tar_has_data (entry->type))
    entry->type = entry->type == '\0' && n > 0 && entry->name[n - 1] == '/' ? PC_TAR_DIRECTORY : PC_TAR_FILE;
  return done;
}

static int
next_block (struct pc_tar *tar, u8 *block)
{
  int got = pc_tar_skip (tar);
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
          pc_tar_begin (tar, entry->stored);
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
