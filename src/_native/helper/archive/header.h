/* Writer of a tar stream: ustar, with PAX records for values that ustar cannot hold. */
#ifndef PC_HEADER_H
#define PC_HEADER_H

#include "tar.h"

#define PC_HEADER_ATTRIBUTES 262144u

struct pc_attribute
{
  const char *name;
  const u8 *value;
  usize size;
};

struct pc_writer
{
  int fd;
  i32 error; /* errno of a failed write */
  usize used;
  u8 *buffer;   /* PC_TAR_BUFFER bytes */
  u8 *extended; /* PC_TAR_EXTENDED_MOST bytes */
  usize extended_size;
};

/* Each returns 0 or -1, with writer->error. */
int pc_writer_put (struct pc_writer *writer, const void *data, usize size);
int pc_writer_pad (struct pc_writer *writer, u64 size);
int pc_writer_flush (struct pc_writer *writer);
/* Write an entry's header, preceded by PAX records where ustar cannot hold a value.  `stored` of a sparse entry
   includes the map, which the caller writes before the data. */
int pc_writer_entry (struct pc_writer *writer, const struct pc_tar_entry *entry,
                     const struct pc_attribute *attributes, u32 count);

/* The ranges of a file that are no holes. */
struct pc_map
{
  u32 count;
  struct pc_tar_region regions[PC_TAR_REGIONS_MOST];
};

/* Find the ranges: how many bytes they have.  Of more than fit, the last one takes the rest of the file. */
u64 pc_map_find (struct pc_map *map, int fd, u64 size);
/* Bytes of the map as text, padded to a block. */
u64 pc_map_size (const struct pc_map *map);
int pc_map_write (struct pc_writer *writer, const struct pc_map *map);

#endif
