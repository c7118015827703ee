/* Interface between the parts of the reader: stream, extended headers, sparse maps, headers. */
#ifndef PC_STREAM_H
#define PC_STREAM_H

#include "tar.h"

/* The sparse-file records of an extended header. */
struct pc_sparse
{
  u32 major;
  u32 is_sparse;
  u64 size;
  u32 count;
  u32 pending; /* an offset was read, its size not yet */
  char *map;
};

/* Fill the buffer to `wanted` bytes at start: 1, 0 at the end of the stream, or a negated problem. */
int pc_tar_fill (struct pc_tar *tar, usize wanted);
/* Begin an entry's data of `size` bytes. */
void pc_tar_begin (struct pc_tar *tar, u64 size);
/* Skip the rest of an entry's data and its padding: 1, or a negated problem. */
int pc_tar_skip (struct pc_tar *tar);
/* Copy `size` bytes of the entry's data: 1, or a negated problem. */
int pc_tar_take (struct pc_tar *tar, u8 *out, usize size);
/* Apply the records of the extended header to an entry: 1, or a negated problem. */
int pc_tar_apply_extended (struct pc_tar *tar, struct pc_tar_entry *entry, struct pc_sparse *sparse);
int pc_tar_has_data (char type);
int pc_sparse_add (struct pc_tar *tar, struct pc_sparse *sparse, u64 offset, u64 size);
/* Read the map that begins in a header of the old GNU format. */
int pc_sparse_read_header (struct pc_tar *tar, const u8 *block, struct pc_sparse *sparse);
/* Read the map of the other formats, check it, and set the entry's size and regions. */
int pc_sparse_read (struct pc_tar *tar, struct pc_tar_entry *entry, struct pc_sparse *sparse);

#endif
