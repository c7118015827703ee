/* The child: the ordered controls from clone to the agent's execve.  It exits on any failure. */
#include "child.h"
#include "helper/netns.h"
#include "mountapi.h"

#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/keyctl.h>
#include <linux/prctl.h>
#include <linux/sched.h>

#define CAP(name) (1ull << (name))

_Noreturn void
pc_die (int control, u32 step, word error, i32 op)
{
  struct pc_record record = { 0 };
  (void) pc_failed (&record, step, error, op);
  (void) pc_send_record (control, &record, -1);
  sys_exit (127);
}

/* Enter the v1 cgroups by writing 0 to their `tasks` files, which the caller has opened.  The kernel moves the
   writing task itself without waiting for an RCU grace period, as it must to move another. */
static int
enter_v1_cgroups (const struct pc_plan *plan, const struct pc_fds *fds)
{
  for (u32 i = 0; i < plan->tasks_count; i++)
    {
      word written = sys_write (fds->fd[plan->tasks_fd + i], "0", 1);
      if (written < 0)
        return (int) written;
    }
  return 0;
}

static void
private_namespaces (const struct pc_plan *plan, int control)
{
  if (plan->namespaces & CLONE_NEWNET)
    CHECK (PC_STEP_NETWORK, sys_unshare (CLONE_NEWNET));
  if (plan->flags & PC_PLAN_LOOPBACK)
    CHECK (PC_STEP_NETWORK, pc_raise_loopback ());
  u64 rest = plan->namespaces & (CLONE_NEWCGROUP | CLONE_NEWTIME);
  if (rest != 0)
    CHECK (PC_STEP_NAMESPACES, sys_unshare (rest));
}

void
pc_receive_sources (int control, int sync, struct pc_child_fds *out)
{
  struct pc_fds fds;
  struct pc_sources_head head;

  out->store = out->dev = out->sys = -1;
  out->source_count = out->foreign = 0;
  do
    {
      word got = pc_receive (sync, &head, sizeof head, &fds, 0);
      if (got != (word) sizeof head)
        sys_exit (127); /* the launcher reports the reason */
      if (fds.truncated)
        pc_die (control, PC_STEP_SYNC, -EMFILE, -1);
      u32 next = 0;
      out->foreign |= head.foreign;
      if (head.store && next < fds.count)
        out->store = fds.fd[next++];
      if (head.dev && next < fds.count)
        out->dev = fds.fd[next++];
      if (head.sys && next < fds.count)
        out->sys = fds.fd[next++];
      while (next < fds.count && out->source_count < COUNT (out->sources))
        out->sources[out->source_count++] = fds.fd[next++];
    }
  while (head.more);
}

void
pc_become_root_inside (const struct pc_plan *plan, int control)
{
  if (plan->namespaces & CLONE_NEWUSER)
    {
      word error = sys_setgroups (0, 0);
      if (error < 0 && !(plan->flags & PC_PLAN_DENY_SETGROUPS))
        pc_die (control, PC_STEP_IDENTITY, error, -1);
      CHECK (PC_STEP_IDENTITY, sys_setresgid (0, 0, 0));
      CHECK (PC_STEP_IDENTITY, sys_setresuid (0, 0, 0));
    }
  CHECK (PC_STEP_IDENTITY, sys_prctl (PR_SET_DUMPABLE, 0, 0));
  /* The signal is bound to the thread that cloned this child.  The launcher has one thread, which exits with the
     caller, so the guest cannot outlive the caller. */
  CHECK (PC_STEP_IDENTITY, sys_prctl (PR_SET_PDEATHSIG, SIGKILL_, 0));
  sys_umask (0);
}

/* Limit the objects that the kernel counts per user (user_namespaces(7), /proc/sys/user): they are charged to the
   caller as well, and a container must not use up the caller's limits. */
static int
bound_counters (const char *line)
{
  char path[64] = "/proc/sys/user/";
  const usize prefix = pc_strlen (path);

  while (*line != '\0')
    {
      usize name = 0, number = 0;
      while (line[name] != ' ' && line[name] != '\0')
        name++;
      const char *value = line + name + (line[name] == ' ');
      while (value[number] != '\n' && value[number] != '\0')
        number++;
      if (number == 0 || prefix + name >= sizeof path)
        return -EINVAL;
      memcpy (path + prefix, line, name);
      path[prefix + name] = '\0';
      int error = pc_write_file (AT_FDCWD_, path, value, number);
      if (error < 0)
        return error;
      line = value + number + (value[number] == '\n');
    }
  return 0;
}

static int
open_null_stdio (int control)
{
  int fds[3];
  int null = (int) sys_openat (AT_FDCWD_, "/dev/null", O_RDWR | O_CLOEXEC, 0);
  if (null < 0)
    return null;
  if (null < 3 || control < 3)
    return -EBADF;
  fds[0] = fds[1] = fds[2] = null;
  return pc_set_stdio (fds);
}

/* Return the capabilities of the agent: those that it needs to apply the last controls to each guest process. */
static u64
agent_capabilities (const struct pc_security *security)
{
  u64 keep = security->capabilities | CAP (CAP_SETUID) | CAP (CAP_SETGID) | CAP (CAP_SETPCAP) | CAP (CAP_KILL)
             | CAP (CAP_DAC_READ_SEARCH);
  if (!(security->flags & PC_SECURITY_NO_NEW_PRIVS))
    keep |= CAP (CAP_SYS_ADMIN);
  return keep;
}

_Noreturn static void
start_agent (const struct pc_launcher *launcher, const struct pc_security *security, int control)
{
  char name[] = "pycontain-agent";
  char *arguments[2] = { name, NULL };
  char *environment[1] = { NULL };
  struct pc_failure failure = { 0, 0 };

  if (pc_limit_capabilities (agent_capabilities (security), 0, &failure) < 0)
    pc_die (control, failure.step, -failure.error, -1);
  int agent = launcher->agent;
  if (control != PC_AGENT_CONTROL_FD)
    {
      if (agent == PC_AGENT_CONTROL_FD)
        CHECK (PC_STEP_AGENT, agent = (int) sys_fcntl (agent, F_DUPFD_CLOEXEC, 5));
      CHECK (PC_STEP_AGENT, sys_dup3 (control, PC_AGENT_CONTROL_FD, 0));
    }
  else
    CHECK (PC_STEP_AGENT, sys_fcntl (control, F_SETFD, 0));
  word error = raw5 (__NR_execveat, agent, "", arguments, environment, AT_EMPTY_PATH);
  pc_die (PC_AGENT_CONTROL_FD, PC_STEP_AGENT, error, -1);
}

_Noreturn static void
start_command (const struct pc_plan *plan, const struct pc_security *security, const struct pc_fds *fds, int control)
{
  struct pc_failure failure = { 0, 0 };
  const struct pc_exec *command = pc_at (plan, plan->command);
  struct pc_record ready = { .kind = PC_RECORD_READY };
  int stdio[3];

  /* The last three fds of the plan are the command's streams. */
  if (fds->count < 3)
    pc_die (control, PC_STEP_STDIO, -EBADF, -1);
  for (u32 i = 0; i < 3; i++)
    stdio[i] = (int) sys_fcntl (fds->fd[fds->count - 3 + i], F_DUPFD_CLOEXEC, 3);
  CHECK (PC_STEP_STDIO, stdio[0] < 0 ? stdio[0] : stdio[1] < 0 ? stdio[1] : stdio[2]);
  CHECK (PC_STEP_STDIO, pc_set_stdio (stdio));
  CHECK (PC_STEP_STDIO, pc_close_all_but (&control, 1));
  sys_setsid ();
  /* A close-on-exec socket: the caller reads READY, then either a failure or the end of the stream. */
  (void) pc_send_record (control, &ready, -1);
  pc_become_guest (security, command, &failure);
  pc_die (control, failure.step, -failure.error, -1);
}

int
pc_enter (int root)
{
  word error = sys_fchdir (root);
  return error < 0 ? (int) error : (int) sys_chroot (".");
}

/* Apply the controls that need the plan, and execute the agent or the command. */
_Noreturn static void
become_container (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                  int control, int sync)
{
  const struct pc_security *security = pc_at (plan, plan->security);
  struct pc_failure failure = { 0, 0 };
  struct pc_root root = { -1, -1, -1 };
  static struct pc_child_fds sources;
  i32 op = -1;

  if (plan->hostname.size > 0)
    CHECK (PC_STEP_HOSTNAME, raw2 (__NR_sethostname, pc_at (plan, plan->hostname), plan->hostname.size));
  pc_receive_sources (control, sync, &sources);
  pc_become_root_inside (plan, control);
  CHECK (PC_STEP_COUNTERS, bound_counters (pc_at (plan, plan->counters)));
  CHECK (PC_STEP_MOUNT, sys_mount ("", "/", 0, MS_REC | MS_PRIVATE, 0));

  if (pc_build_root (launcher, plan, &sources, &root, &op, &failure) < 0)
    pc_die (control, failure.step, -failure.error, op);
  CHECK (PC_STEP_PIVOT, pc_pivot (root.base >= 0 ? root.base : root.root));
  if (root.base >= 0)
    CHECK (PC_STEP_PIVOT, pc_enter (root.root));
  sys_umask (022);
  if (security->flags & PC_SECURITY_KEYRING)
    CHECK (PC_STEP_KEYRING, raw2 (__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0));
  if (security->landlock_abi > 0)
    {
      /* Landlock needs CAP_SYS_ADMIN or no_new_privs.  The latter would stay set, and the plan may not want it. */
      CHECK (PC_STEP_LANDLOCK, pc_apply_landlock (security, root.base));
    }
  if (plan->flags & PC_PLAN_COMMAND_IS_INIT)
    start_command (plan, security, fds, control);
  CHECK (PC_STEP_STDIO, open_null_stdio (control));
  start_agent (launcher, security, control);
}

_Noreturn void
pc_child (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds, int control,
          int sync)
{
  CHECK (PC_STEP_CGROUP, enter_v1_cgroups (plan, fds));
  private_namespaces (plan, control);
  become_container (launcher, plan, fds, control, sync);
}

static u8 claimed[PC_MAX_MESSAGE] __attribute__ ((aligned (16)));

_Noreturn void
pc_spare_child (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds, int sync)
{
  const struct pc_plan *own = (const struct pc_plan *) (const void *) claimed;
  struct pc_fds received;
  /* There is no control socket before a plan: failures are sent over sync to the launcher. */
  int control = sync;
  int kept[] = { sync, launcher->agent };

  CHECK (PC_STEP_CGROUP, enter_v1_cgroups (plan, fds));
  private_namespaces (plan, control);
  /* A spare may wait for long.  Copies of other containers' sockets would keep their ends open, so close them. */
  CHECK (PC_STEP_SPARE, pc_close_all_but (kept, COUNT (kept)));
  CHECK (PC_STEP_SPARE, sys_prctl (PR_SET_PDEATHSIG, SIGKILL_, 0));
  word got = pc_receive (sync, claimed, sizeof claimed, &received, 0);
  if (got <= 0)
    sys_exit (0);
  if (received.count != 1 || received.truncated || pc_plan_check (claimed, (usize) got) < 0)
    pc_die (control, PC_STEP_SPARE, -EINVAL, -1);
  become_container (launcher, own, &received, received.fd[0], sync);
}
