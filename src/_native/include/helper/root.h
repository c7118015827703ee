/* Root file systems: the templates that a launcher makes once, and the root that each container builds from them. */
#ifndef PC_HELPER_ROOT_H
#define PC_HELPER_ROOT_H

#include "helper/launcher.h"
#include "controls.h"

struct pc_root
{
  int root; /* O_PATH fds, or -1 */
  int base; /* mount on which the root is attached and which survives a replaced root */
  int old;  /* root that is to be replaced */
};

/* Mounts that the launcher sent to a child; -1 where one was not sent. */
struct pc_child_fds
{
  int store;
  int dev;
  int sys;
  int sources[COUNT (((struct pc_fds *) 0)->fd)];
  u32 source_count;
  u32 foreign; /* directories of the uppermost layer have no owner inside */
};

/* Enter the launcher's own mount namespace (for an unprivileged caller, user namespace first) and make the templates
   in it.  0, or -1 and *failure. */
int pc_prepare_namespace (struct pc_launcher *launcher, int rootless, struct pc_record *failure);
/* Make the /sys template, once.  0 or a negative errno. */
int pc_make_sys (struct pc_launcher *launcher, const char *entries, usize size, const struct pc_fds *fds);
/* Carry out the plan's operations.  0 and *made, or -1 with the number of the operation and *failure. */
int pc_build_root (const struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_child_fds *fds,
                   struct pc_root *made, i32 *op, struct pc_failure *failure);

#endif
