/* The agent: PID 1 of a container.  It reaps, starts processes on request, and exits when its caller does.
 *
 * It is not dumpable, holds no directory of the host, and reads no input of the guest: its only input is the control
 * socket, which no guest process holds.
 */
#include "agent.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/prctl.h>

static struct pc_agent agent;
static struct pollfd polled[2 + PC_MAX_DRAINED];
static u8 buffer[PC_MAX_MESSAGE] __attribute__ ((aligned (16)));
static u8 security_copy[64 * 1024] __attribute__ ((aligned (16)));

static void
answer_gone (struct pc_fds *fds, int error)
{
  struct pc_record gone = { .kind = PC_RECORD_GONE, .error = -error };
  if (fds->count > 0)
    (void) pc_send_record (fds->fd[0], &gone, -1);
}

static void
serve_open (struct pc_fds *fds, const char *path, int flags)
{
  struct pc_record record = { .kind = PC_RECORD_OPENED };
  struct open_how how = {
    .flags = (u64) (flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK),
    .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
  };
  if (fds->count == 0)
    return;
  cleanup_fd int root = (int) sys_openat (AT_FDCWD_, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  cleanup_fd int fd = (int) sys_openat2 (root, path, &how);
  if (fd < 0)
    record.error = -fd;
  (void) pc_send_record (fds->fd[0], &record, fd);
}

static void
serve_exec (const struct pc_request *request, usize received, struct pc_fds *fds)
{
  usize size = request->size;
  const void *map = NULL;
  const void *exec = buffer + sizeof *request;

  if (request->flags & PC_REQUEST_IN_MEMFD)
    exec = map = pc_map_sealed (fds, size);
  else if (received != sizeof *request + size)
    exec = NULL;
  if (fds->truncated || exec == NULL || agent.security == NULL || pc_exec_check (exec, size) < 0)
    {
      struct pc_record refused = {
        .kind = PC_RECORD_FAILED,
        .step = PC_STEP_PLAN,
        .error = fds->truncated ? EMFILE : EINVAL,
        .op = -1,
      };
      if (fds->count > 0)
        (void) pc_send_record (fds->fd[0], &refused, -1);
    }
  else
    pc_start_exec (&agent, exec, fds);
  if (map != NULL)
    sys_munmap (map, size);
}

/* Apply the controls of guest processes that the agent itself can work under: its children inherit them. */
static int
confine_agent (const struct pc_security *security, struct pc_failure *failure)
{
  word error = pc_drop_bounding (security->capabilities);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_BOUNDING, error);
  if (security->flags & PC_SECURITY_NO_NEW_PRIVS)
    {
      error = sys_prctl (PR_SET_NO_NEW_PRIVS, 1, 0);
      if (error < 0)
        return pc_control_failed (failure, PC_STEP_NO_NEW_PRIVS, error);
    }
  const void *filter = pc_at (security, security->inherited);
  error = security->inherited.size > 0 ? pc_install_filter (filter, security->inherited.size / 8) : 0;
  return error < 0 ? pc_control_failed (failure, PC_STEP_SECCOMP, error) : 0;
}

static void
serve_security (const struct pc_request *request, usize received)
{
  struct pc_record answer = { .kind = PC_RECORD_FAILED, .step = PC_STEP_AGENT, .error = EINVAL };
  struct pc_failure failure = { 0, 0 };
  const struct pc_security *security = (const struct pc_security *) (const void *) security_copy;
  usize size = request->size;

  if (agent.signals < 0)
    answer.error = -agent.signals;
  else if (agent.security == NULL && size <= sizeof security_copy && received == sizeof *request + size
           && pc_security_check (buffer + sizeof *request, size) == 0)
    {
      memcpy (security_copy, buffer + sizeof *request, size);
      if (confine_agent (security, &failure) < 0)
        {
          answer.step = failure.step;
          answer.error = failure.error;
        }
      else
        {
          agent.security = security;
          answer = (struct pc_record) { .kind = PC_RECORD_READY };
        }
    }
  /* The caller waits for this answer.  If it cannot be sent, closing the socket is the only answer left. */
  if (pc_send_record (PC_AGENT_CONTROL_FD, &answer, -1) < 0)
    sys_exit (1);
}

static void
serve_kill_tree (const struct pc_request *request, struct pc_fds *fds)
{
  struct pc_process *process = pc_find_process (&agent, request->id);
  int error = 0;
  if (process != NULL && process->command != NULL)
    error = pc_kill_tree (agent.proc, process->pid, process->command);
  else if (process != NULL)
    sys_kill (process->pid, SIGKILL_);
  pc_reap (&agent, WNOHANG_);
  answer_gone (fds, error);
}

static void
serve_kill_all (struct pc_fds *fds)
{
  sys_kill (-1, SIGKILL_);
  /* Every process but PID 1 is dying, and is or will be reparented to this one: wait for the last. */
  while (pc_reap (&agent, 0) >= 0)
    continue;
  answer_gone (fds, 0);
}

static void
serve_signal (const struct pc_request *request)
{
  struct pc_process *process = pc_find_process (&agent, request->id);
  if (process == NULL)
    return;
  i32 pid = process->command != NULL ? *process->command : process->pid;
  if (pid > 0)
    sys_kill (pid, request->value);
}

/* Read and discard further output of a finished exec.  Pipes beyond the bound of the table are closed, so that their
   writers get SIGPIPE. */
static void
serve_drain (struct pc_fds *fds)
{
  for (u32 i = 0; i < fds->count && agent.drained_count < PC_MAX_DRAINED; i++)
    {
      /* Non-blocking: a guest may open the pipe through /proc and read first what poll(2) reported. */
      if (sys_fcntl (fds->fd[i], F_SETFL, O_NONBLOCK) == 0)
        agent.drained[agent.drained_count++] = pc_steal_fd (&fds->fd[i]);
    }
}

/* Read once from each pipe per turn, so that a process that writes much delays no request. */
static void
drain (const struct pollfd *ready, u32 count)
{
  for (u32 i = count; i-- > 0;)
    {
      if (ready[i].revents == 0)
        continue;
      word got = sys_read (agent.drained[i], buffer, sizeof buffer);
      if (got > 0 || got == -EAGAIN || got == -EINTR)
        continue;
      pc_close_fd (&agent.drained[i]);
      agent.drained[i] = agent.drained[--agent.drained_count];
    }
}

static void
serve (void)
{
  struct pc_fds fds;
  const struct pc_request *request = (const struct pc_request *) (const void *) buffer;
  word received = pc_receive (PC_AGENT_CONTROL_FD, buffer, sizeof buffer - 1, &fds, 0);

  if (received <= 0)
    sys_exit (0); /* the caller is gone; the kernel kills all other processes with PID 1 */
  buffer[received] = '\0';
  if ((usize) received >= sizeof *request)
    switch (request->kind)
      {
      case PC_REQUEST_SECURITY:
        serve_security (request, (usize) received);
        break;
      case PC_REQUEST_EXEC:
        serve_exec (request, (usize) received, &fds);
        break;
      case PC_REQUEST_SIGNAL:
        serve_signal (request);
        break;
      case PC_REQUEST_KILL_TREE:
        serve_kill_tree (request, &fds);
        break;
      case PC_REQUEST_KILL_ALL:
        serve_kill_all (&fds);
        break;
      case PC_REQUEST_OPEN:
        serve_open (&fds, (const char *) buffer + sizeof *request, request->value);
        break;
      case PC_REQUEST_DRAIN:
        serve_drain (&fds);
        break;
      default:
        break;
      }
  pc_close_fds (&fds);
}

_Noreturn void
pc_main (word *stack)
{
  u64 blocked = ~0ull;
  u64 child = SIGNAL_BIT (SIGCHLD_);
  u8 info[128];
  (void) stack;

  sys_prctl (PR_SET_DUMPABLE, 0, 0);
  agent.signals = (int) sys_rt_sigprocmask (SIG_SETMASK_, &blocked, 0, 8);
  if (agent.signals == 0)
    agent.signals = (int) sys_signalfd4 (-1, &child, 8, SFD_CLOEXEC_ | SFD_NONBLOCK_);
  sys_fcntl (PC_AGENT_CONTROL_FD, F_SETFD, FD_CLOEXEC);
  agent.proc = (int) sys_openat (AT_FDCWD_, "/proc", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  agent.terminals = (int) sys_openat (AT_FDCWD_, "/dev/pts", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);

  for (;;)
    {
      u32 drained = agent.drained_count;
      polled[0] = (struct pollfd) { .fd = PC_AGENT_CONTROL_FD, .events = POLLIN };
      polled[1] = (struct pollfd) { .fd = agent.signals, .events = POLLIN };
      for (u32 i = 0; i < drained; i++)
        polled[2 + i] = (struct pollfd) { .fd = agent.drained[i], .events = POLLIN };
      sys_ppoll (polled, 2 + drained, 0, 0, 8);
      if (drained > 0)
        drain (polled + 2, drained);
      if (polled[1].revents != 0)
        {
          while (sys_read (agent.signals, info, sizeof info) > 0)
            continue;
          pc_reap (&agent, WNOHANG_);
        }
      if (polled[0].revents != 0)
        serve ();
    }
}
