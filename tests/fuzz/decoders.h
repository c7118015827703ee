/* What the driver without libFuzzer shares with the target. */
#ifndef PC_FUZZ_DECODERS_H
#define PC_FUZZ_DECODERS_H

#include <stddef.h>
#include <stdint.h>

enum decoder
{
  DECODER_PLAN,
  DECODER_SECURITY,
  DECODER_EXEC,
  DECODER_COUNT
};

struct decoder_counts
{
  uint64_t executions;
  uint64_t accepted[DECODER_COUNT];
};

extern struct decoder_counts decoder_counts;

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#endif
