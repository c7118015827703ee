/* Members of an archive, made by chance out of what means something to a reader. */
#ifndef PC_FUZZ_MEMBERS_H
#define PC_FUZZ_MEMBERS_H

#include <stddef.h>
#include <stdint.h>

#define BLOCK 512u
#define FRESH_MOST (16 * BLOCK)

struct archive
{
  uint8_t *data;
  size_t size;
  size_t room;
};

/* The data size in a header; 0 if it is invalid. */
size_t member_size (const uint8_t *header);
void header_change (uint8_t *header);
/* Give it the right sum. */
void header_close (uint8_t *header);
/* A whole member, with what precedes it; its size, at most FRESH_MOST. */
size_t member_make (uint8_t *out);

#endif
