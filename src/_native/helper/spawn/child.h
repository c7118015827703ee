/* Interface between a launcher and the children that it clones. */
#ifndef PC_CHILD_H
#define PC_CHILD_H

#include "helper/root.h"
#include "helper/spawn.h"

/* Precedes the fds of a plan's sources: which special mounts come first, and whether another message follows. */
struct pc_sources_head
{
  u32 store;
  u32 dev;
  u32 sys;
  u32 more;
};

struct clone_args;
/* As root, clone a container so that its user namespace belongs to its own first id. */
word pc_clone_owned (const struct pc_plan *plan, const struct clone_args *args);
/* Apply the plan's controls in order and execute the agent, or the command that is PID 1. */
_Noreturn void pc_child (const struct pc_launcher *launcher, const struct pc_plan *plan,
                         const struct pc_fds *fds, int control, int sync);
/* The same for a child that was cloned ahead and receives its plan over sync. */
_Noreturn void pc_spare_child (const struct pc_launcher *launcher, const struct pc_plan *plan,
                               const struct pc_fds *fds, int sync);
/* Report the failure of a step on the control socket and exit. */
_Noreturn void pc_die (int control, u32 step, word error, i32 op);
void pc_receive_sources (int control, int sync, struct pc_child_fds *out);
void pc_become_root_inside (const struct pc_plan *plan, int control);
/* Open the plan's mount sources and send them to the child `pid`.  0, or -1 and the reply. */
int pc_send_sources (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                     word pid, int sync, struct pc_record *reply);
/* Make an fd's directory the root: fchdir and chroot.  0 or a negative errno. */
int pc_enter (int root);

#define CHECK(step, expression)                                                                    \
  do                                                                                               \
    {                                                                                              \
      word check_error = (expression);                                                             \
      if (check_error < 0)                                                                         \
        pc_die (control, step, check_error, -1);                                                   \
    }                                                                                              \
  while (0)

#endif
