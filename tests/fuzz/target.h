/* Interface between a driver and its target. */
#ifndef PC_FUZZ_TARGET_H
#define PC_FUZZ_TARGET_H

#include <stddef.h>
#include <stdint.h>

#define FUZZ_KINDS 3

struct fuzz_counts
{
  uint64_t executions;
  uint64_t accepted[FUZZ_KINDS];
};

extern struct fuzz_counts fuzz_counts;
/* The kinds of accepted inputs, each as often as it is to be chosen for mutation. */
extern const uint8_t fuzz_order[4];

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#endif
