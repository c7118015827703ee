/* Holes of a file that is packed: GNU tar's sparse format in PAX headers, version 1.0. */
#include "header.h"
#include "wire.h"

#include <linux/errno.h>

#define SEEK_DATA 3
#define SEEK_HOLE 4

u64
pc_map_find (struct pc_map *map, int fd, u64 size)
{
  u64 at = 0;
  u64 stored = 0;
  word to = 0;

  map->count = 0;
  while (at < size)
    {
      word from = sys_lseek (fd, at, SEEK_DATA);
      if (from == -ENXIO || (from >= 0 && (u64) from >= size))
        break;
      if (from >= 0)
        to = sys_lseek (fd, from, SEEK_HOLE);
      else
        from = (word) at; /* a file system that does not know its holes */
      if (to <= from || (u64) to > size || map->count == PC_TAR_REGIONS_MOST - 2)
        to = (word) size;
      map->regions[map->count++] = (struct pc_tar_region) { (u64) from, (u64) (to - from) };
      stored += (u64) (to - from);
      at = (u64) to;
    }
  /* Other readers take a file's size from the end of its last range. */
  if (at < size || size == 0)
    map->regions[map->count++] = (struct pc_tar_region) { size, 0 };
  return stored;
}

static usize
put_line (char *line, u64 value)
{
  usize n = pc_decimal (line, value);
  line[n] = '\n';
  return n + 1;
}

static usize
put_range (char *line, const struct pc_tar_region *region)
{
  usize n = put_line (line, region->offset);
  return n + put_line (line + n, region->size);
}

static u64
text_size (const struct pc_map *map)
{
  char line[48];
  u64 size = put_line (line, map->count);
  for (u32 i = 0; i < map->count; i++)
    size += put_range (line, &map->regions[i]);
  return size;
}

u64
pc_map_size (const struct pc_map *map)
{
  return (text_size (map) + PC_TAR_BLOCK - 1) / PC_TAR_BLOCK * PC_TAR_BLOCK;
}

int
pc_map_write (struct pc_writer *writer, const struct pc_map *map)
{
  char line[48];
  usize n = put_line (line, map->count);

  if (pc_writer_put (writer, line, n) < 0)
    return -1;
  for (u32 i = 0; i < map->count; i++)
    {
      n = put_range (line, &map->regions[i]);
      if (pc_writer_put (writer, line, n) < 0)
        return -1;
    }
  return pc_writer_pad (writer, text_size (map));
}
