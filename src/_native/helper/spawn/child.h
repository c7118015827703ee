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
  u32 foreign; /* the uppermost layer is shown without the container's id map */
};

/* Clone a child and write its id maps.  0, or -1 and the reply. */
int pc_clone_child (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds, int spare,
                    struct pc_child_handle *child, struct pc_record *reply);
void pc_kill_and_reap (struct pc_child_handle *child);
/* Hand the plan to the child that waits.  0 and *child, or -1 and the reply. */
int pc_claim_spare (struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                    struct pc_child_handle *child, struct pc_record *reply);
/* Return 1 if every fd that the plan names came with it. */
int pc_has_fds (const struct pc_plan *plan, const struct pc_fds *fds);
/* Write the id maps of the user namespace of `pid`.  0 or a negative errno. */
int pc_write_maps (const struct pc_plan *plan, word pid);
int pc_open_user_namespace (word pid);
/* Return a borrowed fd of a user namespace in which the container's ids are those from `first` on, or a negative
   errno. */
int pc_find_map (const struct pc_plan *plan, u64 first);
struct clone_args;
/* As root, clone a container so that its user namespace belongs to its own first id. */
word pc_clone_owned (const struct pc_plan *plan, const struct clone_args *args);
/* Apply the plan's controls in order and execute the agent, or the command that is PID 1. */
_Noreturn void pc_child (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                         int control, int sync);
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

#define CHECK(step, expression)                  \
  do                                             \
    {                                            \
      word check_error = (expression);           \
      if (check_error < 0)                       \
        pc_die (control, step, check_error, -1); \
    }                                            \
  while (0)

#endif
