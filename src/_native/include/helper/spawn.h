/* Starting containers: clone, id maps, mount sources, the ordered controls up to execve. */
#ifndef PC_HELPER_SPAWN_H
#define PC_HELPER_SPAWN_H

#include "helper/launcher.h"

/* Start the container of a plan.  Returns the pidfd of its PID 1 and fills the reply with the pid, or returns -1
   with the step that failed. */
int pc_spawn (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds, struct pc_record *reply);
/* Clone a child ahead of its plan, in place of the one that waits already. */
void pc_prepare_spare (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds);
/* Forget the waiting child if it is the one that was reaped. */
void pc_spare_ended (struct pc_launcher *launcher, i32 pid);
/* Replace the root of a container that runs nothing but its agent.  The reply says whether the child that does it
   was started and the container lives; the outcome follows on the plan's control socket. */
void pc_replace_root (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                      i32 pid, struct pc_record *reply);
/* Run file operations, each a letter, the index in fds of a directory, a path below it, and for some a text; strings
   end with NUL.  m makes a cgroup, c changes an owner, w writes, d and t open a directory or file and append it to
   fds.  Returns 0 or a negative errno. */
int pc_run_script (const char *script, usize size, struct pc_fds *fds);
/* Set every attribute that is inherited from the caller to a defined value. */
void pc_reset_ambient (void);
/* Report the end of PID 1 of a container on exit_fd, which is closed then. */
void pc_watch_child (i32 pid, int exit_fd);
void pc_reap_children (struct pc_launcher *launcher);
void pc_end_children (void);
int pc_has_children (void);

#endif
