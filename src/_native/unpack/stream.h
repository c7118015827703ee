/* What the reader of headers and that of sparse maps share. */
#ifndef PC_STREAM_H
#define PC_STREAM_H

#include "tar.h"

/* What the records of an extended header say of sparse files. */
struct pc_sparse
{
  u32 major;
  u32 is_sparse;
  u64 size;
  u32 count;
  u32 pending; /* an offset was read, its size not yet */
  char *map;
};

/* Have `wanted` bytes at buffer + start: 1, 0 when the stream ends before the first, or a negated problem. */
int pc_tar_fill (struct pc_tar *tar, usize wanted);
int pc_sparse_add (struct pc_tar *tar, struct pc_sparse *sparse, u64 offset, u64 size);
/* The map that GNU's own header begins. */
int pc_sparse_read_header (struct pc_tar *tar, const u8 *block, struct pc_sparse *sparse);
/* The map wherever else it stands, checked; the entry then says what the file is. */
int pc_sparse_read (struct pc_tar *tar, struct pc_tar_entry *entry, struct pc_sparse *sparse);

#endif
