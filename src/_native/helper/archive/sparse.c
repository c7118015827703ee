/* Maps of sparse files: PAX 0.0, 0.1 and 1.0, and GNU's old format. */
#include "number.h"
#include "stream.h"
#include "wire.h"

int
pc_sparse_add (struct pc_tar *tar, struct pc_sparse *sparse, u64 offset, u64 size)
{
  if (sparse->count == PC_TAR_REGIONS_MOST)
    return -PC_UNPACK_SPARSE;
  tar->regions[sparse->count++] = (struct pc_tar_region) { offset, size };
  return 1;
}

/* PAX 0.1: "offset,size,offset,size". */
static int
read_listed_map (struct pc_tar *tar, struct pc_sparse *sparse)
{
  const char *at = sparse->map;
  sparse->count = 0;
  while (*at != '\0')
    {
      u64 pair[2];
      for (u32 i = 0; i < 2; i++)
        {
          usize n = 0;
          while (at[n] >= '0' && at[n] <= '9')
            n++;
          if (pc_parse_decimal (at, n, &pair[i]) < 0 || (i == 0 && at[n] != ','))
            return -PC_UNPACK_SPARSE;
          at += n;
          if (*at == ',')
            at++;
          else if (*at != '\0')
            return -PC_UNPACK_SPARSE;
        }
      int added = pc_sparse_add (tar, sparse, pair[0], pair[1]);
      if (added < 0)
        return added;
    }
  return 1;
}

static int
read_line_number (struct pc_tar *tar, u64 *value)
{
  char digits[24];
  usize n = 0;
  for (;;)
    {
      const u8 *data;
      word got = pc_tar_data (tar, 1, &data);
      if (got <= 0)
        return got < 0 ? (int) got : -PC_UNPACK_SPARSE;
      if (*data == '\n')
        return pc_parse_decimal (digits, n, value) < 0 ? -PC_UNPACK_SPARSE : 1;
      if (n == sizeof digits)
        return -PC_UNPACK_SPARSE;
      digits[n++] = (char) *data;
    }
}

/* PAX 1.0: lines at the head of the data, padded to a block. */
static int
read_leading_map (struct pc_tar *tar, struct pc_sparse *sparse)
{
  u64 before = tar->left;
  u64 count;
  int done = read_line_number (tar, &count);

  if (done > 0 && count > PC_TAR_REGIONS_MOST)
    return -PC_UNPACK_SPARSE;
  sparse->count = 0;
  for (u64 i = 0; done > 0 && i < count; i++)
    {
      u64 offset = 0;
      u64 size = 0;
      done = read_line_number (tar, &offset);
      if (done > 0)
        done = read_line_number (tar, &size);
      if (done > 0)
        done = pc_sparse_add (tar, sparse, offset, size);
    }
  u64 odd = (before - tar->left) % PC_TAR_BLOCK;
  for (u64 pad = odd == 0 ? 0 : PC_TAR_BLOCK - odd; done > 0 && pad > 0;)
    {
      const u8 *data;
      word got = pc_tar_data (tar, pad, &data);
      if (got <= 0)
        return got < 0 ? (int) got : -PC_UNPACK_SPARSE;
      pad -= (u64) got;
    }
  return done;
}

/* Old GNU format: pairs in the header and in blocks after it. */
int
pc_sparse_read_header (struct pc_tar *tar, const u8 *block, struct pc_sparse *sparse)
{
  u8 more[PC_TAR_BLOCK];
  const u8 *at = block + 386;
  u32 pairs = 4;
  u32 extended = block[482];

  if (pc_parse_field (block + 483, 12, &sparse->size) < 0)
    return -PC_UNPACK_SPARSE;
  for (;;)
    {
      for (u32 i = 0; i < pairs; i++, at += 24)
        {
          u64 offset, size;
          if (at[0] == '\0' && at[12] == '\0')
            break;
          if (pc_parse_field (at, 12, &offset) < 0 || pc_parse_field (at + 12, 12, &size) < 0)
            return -PC_UNPACK_SPARSE;
          int added = pc_sparse_add (tar, sparse, offset, size);
          if (added < 0)
            return added;
        }
      if (extended == 0)
        return 1;
      int got = pc_tar_fill (tar, PC_TAR_BLOCK);
      if (got <= 0)
        return got < 0 ? got : -PC_UNPACK_TRUNCATED;
      memcpy (more, tar->buffer + tar->start, PC_TAR_BLOCK);
      tar->start += PC_TAR_BLOCK;
      at = more;
      pairs = 21;
      extended = more[504];
    }
}

/* Check that the regions are sorted, within the file, and match the bytes in the archive. */
static int
check_map (const struct pc_tar *tar, const struct pc_sparse *sparse, u64 stored)
{
  u64 at = 0;
  u64 sum = 0;
  for (u32 i = 0; i < sparse->count; i++)
    {
      const struct pc_tar_region *region = &tar->regions[i];
      if (region->offset < at || region->offset > sparse->size || region->size > sparse->size - region->offset)
        return -PC_UNPACK_SPARSE;
      at = region->offset + region->size;
      sum += region->size;
    }
  return sum == stored ? 1 : -PC_UNPACK_SPARSE;
}

int
pc_sparse_read (struct pc_tar *tar, struct pc_tar_entry *entry, struct pc_sparse *sparse)
{
  int done = 1;

  if (sparse->map != NULL)
    done = read_listed_map (tar, sparse);
  else if (sparse->major == 1)
    done = read_leading_map (tar, sparse);
  if (done > 0)
    done = check_map (tar, sparse, tar->left);
  if (done < 0)
    return done;
  entry->sparse = 1;
  entry->stored = tar->left;
  entry->size = sparse->size;
  entry->regions = tar->regions;
  entry->region_count = sparse->count;
  return 1;
}
