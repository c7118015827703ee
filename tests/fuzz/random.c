/* The one source of chance of all mutations. */
#include "mutate.h"

static uint64_t state = 1;

/* xorshift64* */
uint64_t
mutate_any (void)
{
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state * 0x2545f4914f6cdd1dull;
}

void
mutate_seed (uint64_t seed)
{
  state = seed * 0x9e3779b97f4a7c15ull;
  if (state == 0)
    state = 1;
}

size_t
mutate_below (size_t limit)
{
  return limit == 0 ? 0 : (size_t) ((mutate_any () >> 11) % limit);
}
