/* The launcher: clones containers, from one thread and a small address space without libc.
 *
 * The extension starts it from a sealed memfd. It exits when the caller closes its socket, and PID 1 of each of its
 * containers with it.
 */
#include "helper/netns.h"
#include "helper/root.h"
#include "helper/spawn.h"
#include "serve.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/securebits.h>
#include <linux/signal.h>

#define SIG_BLOCK_ALL (~0ull)

static int
prepare_signals (void)
{
  struct
  {
    void *handler;
    u64 flags;
    void *restorer;
    u64 mask;
  } defaults = { 0 };
  u64 mask = SIG_BLOCK_ALL;
  u64 child = SIGNAL_BIT (SIGCHLD_);

  /* The caller may ignore SIGPIPE or SIGCHLD.  A guest must not inherit the first, and with the second ignored the
     kernel would reap children without a report. */
  for (word number = 1; number <= 64; number++)
    {
      word error = raw4 (__NR_rt_sigaction, number, &defaults, 0, 8);
      if (error < 0 && number != SIGKILL_ && number != SIGSTOP_)
        return (int) error;
    }
  word error = sys_rt_sigprocmask (SIG_SETMASK_, &mask, 0, 8);
  if (error < 0)
    return (int) error;
  return (int) sys_signalfd4 (-1, &child, 8, SFD_CLOEXEC_ | SFD_NONBLOCK_);
}

/* Keep capabilities while the effective uid is that of a container (spawn/owner.c).  A new user namespace starts with
   all securebits cleared, so its processes do not inherit this. */
static int
keep_capabilities (void)
{
  return (int) sys_prctl (PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0);
}

/* Wait in the caller's process group for SIGINT, or for the caller's end.  Either closes the socket, so that the
   caller learns of a Ctrl-C without a signal handler of its own.  Other signals stay blocked. */
_Noreturn static void
wait_for_interrupt (void)
{
  u64 mask = ~SIGNAL_BIT (SIGINT_);
  u8 byte;

  sys_close (PC_AGENT_IMAGE_FD);
  if (sys_rt_sigprocmask (SIG_SETMASK_, &mask, 0, 8) == 0)
    while (sys_read (PC_LAUNCHER_FD, &byte, 1) == -EINTR)
      continue;
  sys_exit (0);
}

_Noreturn void
pc_main (word *stack)
{
  char **argv = (char **) (stack + 1);
  struct pc_launcher launcher = {
    .socket = PC_LAUNCHER_FD,
    .agent = PC_AGENT_IMAGE_FD,
    .host_mounts = -1,
    .own_mounts = -1,
    .dev = -1,
    .sys = -1,
    .spare = { 0, -1, -1 },
  };
  struct pc_record ready = { .kind = PC_RECORD_READY };
  if (stack[0] > 1 && pc_streq (argv[1], "sentinel"))
    wait_for_interrupt ();

  int signals = prepare_signals ();

  pc_reset_ambient ();
  sys_fcntl (PC_LAUNCHER_FD, F_SETFD, FD_CLOEXEC);
  sys_fcntl (PC_AGENT_IMAGE_FD, F_SETFD, FD_CLOEXEC);
  if (signals < 0)
    (void) pc_failed (&ready, PC_STEP_LAUNCHER, signals, -1);
  /* A file server joins the user namespace of a container.  A rootless launcher's own user namespace would forbid it:
     setns(2) needs CAP_SYS_ADMIN in the namespace that is joined. */
  int joins = stack[0] > 1 && pc_streq (argv[1], "files");
  int has_netns = stack[0] > 1 && pc_streq (argv[1], "rootless-netns");
  int rootless = has_netns || (stack[0] > 1 && pc_streq (argv[1], "rootless"));
  launcher.privileged = !joins && !rootless && keep_capabilities () == 0;
  if (signals < 0 || (!joins && pc_prepare_namespace (&launcher, rootless, &ready) < 0)
      || (has_netns && pc_enter_rootless_netns (&ready) < 0))
    {
      (void) pc_send_record (launcher.socket, &ready, -1);
      sys_exit (1);
    }
  ready.flags = (u32) launcher.old_layers;
  pc_answer (&launcher, &ready, -1);

  for (;;)
    {
      struct pollfd polled[2] = {
        { .fd = launcher.socket, .events = POLLIN },
        { .fd = signals, .events = POLLIN },
      };
      sys_ppoll (polled, 2, 0, 0, 8);
      if (polled[1].revents != 0)
        {
          u8 info[128];
          while (sys_read (signals, info, sizeof info) > 0)
            continue;
          pc_reap_children (&launcher);
        }
      if (polled[0].revents != 0 && pc_serve (&launcher) < 0)
        {
          pc_end_children ();
          sys_exit (0);
        }
    }
}
