/* Declarations of the layers fuzz target. */
#ifndef PC_FUZZ_LAYERS_H
#define PC_FUZZ_LAYERS_H

#include "layer.h"

#include <stdio.h>
#include <stdlib.h>

#define STREAM_FD 100000 /* reads return the input */
#define OUTPUT_FD 100001 /* writes are stored */
#define MAX_BYTES (256u << 10)
#define MAX_ENTRIES 64u
#define CLAMP 1000000000 /* upper bound of packed times, so that entries without a time pack the same twice */
#define OUTPUT_MOST (2u << 20)

#define REQUIRE(condition)                                                                                    \
  do                                                                                                          \
    if (!(condition))                                                                                         \
      {                                                                                                       \
        fprintf (stderr, "%s:%d: not: %s\n", __FILE__, __LINE__, #condition);                                 \
        abort ();                                                                                             \
      }                                                                                                       \
  while (0)

/* layers_kernel.c: all system calls of the code under test. */
void kernel_stream (const u8 *data, usize size, u32 split);
void kernel_begin (void);
/* Give back what was mapped since kernel_begin, and see that no fd is left. */
void kernel_end (void);
extern u8 *kernel_output;
extern usize kernel_output_size;

/* layers_room.c: directories. */
struct room
{
  int work;
  int lowers[2];
};
/* In the directory that PYC_FUZZ_ROOM names. */
void room_make (struct room *room);
/* A fresh directory in room->work: an fd. */
int room_fresh (const struct room *room, const char *name);
/* Everything but room->work is as it was made, and that holds this many directories. */
void room_check (const struct room *room, u32 directories);

/* layers_finish.c: close the directories that the unpacker keeps open. */
void finish_forget (void);

/* layers_compare.c */
void compare_trees (int a, int b);

/* layers_read.c */
struct reading
{
  u64 entries;
  u64 bytes; /* of all files as they are, holes included */
  u64 hash;
  u32 looks_implied; /* an entry has the mode that marks a directory without one */
  int result;
};
/* Read the stream with the reader alone; as much of each file's data as `part` of 2. */
struct reading read_layer (u32 part);

/* layers_write.c */
int write_layer (int top, const int *lowers, u32 count, u32 flags, struct pc_unpack_report *report);
int pack_layer (int top, u32 flags, struct pc_unpack_report *report);

#endif
