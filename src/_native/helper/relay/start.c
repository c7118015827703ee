/* Start of a relay process, and the privileges that it drops before it serves a connection. */
#include "controls.h"
#include "helper/relay.h"
#include "parts.h"

#include <linux/errno.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/securebits.h>

#define OVERFLOW_ID 65534

/* Become the overflow user, without capabilities.  EINVAL: a rootless user namespace may not map that id. */
static word
drop_rights (int socket)
{
  struct pc_failure failure = { 0, 0 };
  u64 none[2] = { 0, 0 };
  word error = pc_close_all_but (&socket, 1);

  /* Keep capabilities across the change of uid: they are dropped after it, as pc_limit_capabilities needs them. */
  if (error == 0)
    error = sys_prctl (PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0);
  if (error == 0 && (error = sys_setgroups (0, 0)) == -EPERM)
    error = 0; /* denied for good where the id map was written without privilege */
  if (error == 0 && (error = sys_setresgid (OVERFLOW_ID, OVERFLOW_ID, OVERFLOW_ID)) == -EINVAL)
    error = 0;
  if (error == 0 && (error = sys_setresuid (OVERFLOW_ID, OVERFLOW_ID, OVERFLOW_ID)) == -EINVAL)
    error = 0;
  if (error == 0 && pc_limit_capabilities (0, 0, &failure) < 0)
    error = -failure.error;
  if (error == 0)
    error = sys_prlimit64 (0, RLIMIT_CORE_, none, 0);
  if (error == 0)
    error = sys_prctl (PR_SET_NO_NEW_PRIVS, 1, 0);
  /* A change of ids undoes both of these. */
  if (error == 0)
    error = sys_prctl (PR_SET_DUMPABLE, 0, 0);
  return error < 0 ? error : sys_prctl (PR_SET_PDEATHSIG, SIGKILL_, 0);
}

void
pc_start_relay (const struct pc_fds *fds, struct pc_record *reply)
{
  struct clone_args args = { .exit_signal = SIGCHLD_ };
  int type = fds->count == 1 ? pc_socket_option (fds->fd[0], SO_TYPE) : -EINVAL;

  if (type < 0 || type != SOCK_SEQPACKET_)
    {
      (void) pc_failed (reply, PC_STEP_NETWORK, fds->truncated ? -EMFILE : type < 0 ? type : -EPROTOTYPE, -1);
      return;
    }
  word launcher = sys_getpid ();
  word child = sys_clone3 (&args, sizeof args);
  if (child == 0)
    {
      /* A launcher that ended before it was watched has another in its place as the parent. */
      if (drop_rights (fds->fd[0]) < 0 || raw0 (__NR_getppid) != launcher)
        sys_exit (1);
      pc_relay (fds->fd[0]);
    }
  if (child < 0)
    {
      (void) pc_failed (reply, PC_STEP_NETWORK, child, -1);
      return;
    }
  reply->kind = PC_RECORD_STARTED;
  reply->value = (i32) child;
}
