/* libFuzzer's own mutations and ours, by turns. */
#include "mutate.h"

size_t LLVMFuzzerMutate (uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t most, unsigned int seed);

size_t
LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t most, unsigned int seed)
{
  mutate_seed (seed);
  if (mutate_below (3) == 0)
    return LLVMFuzzerMutate (data, size, most);
  return mutate (data, size, most, NULL, 0);
}
