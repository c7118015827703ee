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
/* Write an entry's header, preceded by PAX records where ustar cannot hold a value. */
int pc_writer_entry (struct pc_writer *writer, const struct pc_tar_entry *entry,
                     const struct pc_attribute *attributes, u32 count);

#endif
