/* Mutations that know what a buffer of plan.h looks like. */
#ifndef PC_FUZZ_MUTATE_H
#define PC_FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

void mutate_seed (uint64_t seed);
/* A number below limit; 0 where there is none. */
uint64_t mutate_any (void);
size_t mutate_below (size_t limit);
/* Change data in place, in its room of `most` bytes; a piece of other may be spliced in.  The new size. */
size_t mutate (uint8_t *data, size_t size, size_t most, const uint8_t *other, size_t other_size);

#endif
