/* Memory that is taken and given back in order, and the names of a directory in it. */
#ifndef PC_NAMES_H
#define PC_NAMES_H

#include "raw.h"

#define PC_ARENA_MOST (1ull << 30)

/* What grows and shrinks with the depth: names of the directories above, and for good: linked files. */
struct pc_arena
{
  u8 *memory;
  usize used;
};

/* Memory that costs nothing until it is touched, or NULL. */
u8 *pc_reserve (usize size);
void *pc_take (struct pc_arena *arena, usize size);
int pc_compare_names (const char *a, const char *b);
/* The names in a directory, sorted: a list in the arena, or NULL. */
char **pc_list_names (struct pc_arena *arena, int fd, usize *count);

#endif
