/* An arena with stack discipline, and directory listings in it. */
#ifndef PC_NAMES_H
#define PC_NAMES_H

#include "raw.h"

#define PC_ARENA_MOST (1ull << 30)

/* Holds the names of the open directories, which shrink with the depth, and the linked files, which stay. */
struct pc_arena
{
  u8 *memory;
  usize used;
};

/* Reserve memory that is allocated on first access; NULL on failure. */
u8 *pc_reserve (usize size);
void *pc_take (struct pc_arena *arena, usize size);
int pc_starts_with (const char *text, const char *prefix);
/* Return 1 for an extended attribute that is content: user.*, capabilities, and a file's own ACL.  A default ACL
   would change entries that come later; others belong to a host, or are read by overlayfs. */
int pc_attribute_is_content (const char *name);
int pc_compare_names (const char *a, const char *b);
/* List the names in a directory, sorted, in the arena; NULL on failure. */
char **pc_list_names (struct pc_arena *arena, int fd, usize *count);

#endif
