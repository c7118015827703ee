/* Trees that a guest wrote, and cgroups: removal, and the space that a tree takes. */
#ifndef PC_HELPER_CLEANUP_H
#define PC_HELPER_CLEANUP_H

#include "raw.h"

struct pc_measured
{
  u64 bytes;
  u64 inodes;
};

/* Remove the tree `name` below dir, whatever its depth and modes.  0 or a negative errno. */
int pc_remove_tree (int dir, const char *name);
/* Count allocated bytes and inodes of the tree `name` below dir, up to either bound.  0 or a negative errno. */
int pc_measure_tree (int dir, const char *name, u64 most_bytes, u64 most_inodes, struct pc_measured *out);
/* Remove the cgroup `name` below dir and the cgroups in it.  0 or a negative errno. */
int pc_remove_group (int dir, const char *name);

#endif
