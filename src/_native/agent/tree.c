/* Execs without a cgroup of their own: each has a subreaper, and its processes are found in /proc. */
#include "agent.h"

#include <linux/errno.h>
#include <linux/fcntl.h>

#define MAX_TREE 32768

static i32 pids[MAX_TREE];
static i32 parents[MAX_TREE];
static u8 marked[MAX_TREE];
static char listing[32768] __attribute__ ((aligned (8)));

static i32
parse_pid (const char *text)
{
  i32 value = 0;
  if (*text < '0' || *text > '9')
    return -1;
  for (; *text >= '0' && *text <= '9' && value < 100000000; text++)
    value = value * 10 + (*text - '0');
  return value;
}

/* Field 4 of /proc/PID/stat, behind a command name that may hold anything. */
static i32
parent_of (int proc, const char *pid)
{
  char path[32];
  char text[512];
  usize n = pc_strlen (pid);
  memcpy (path, pid, n);
  memcpy (path + n, "/stat", 6);
  cleanup_fd int fd = (int) sys_openat (proc, path, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0)
    return -1;
  word got = sys_read (fd, text, sizeof text - 1);
  if (got <= 0)
    return -1;
  text[got] = '\0';
  word end = got;
  while (end > 0 && text[end] != ')')
    end--;
  return end + 4 < got ? parse_pid (text + end + 4) : -1;
}

static u32
list_processes (int proc)
{
  u32 count = 0;
  word got;

  while ((got = sys_getdents64 (proc, listing, sizeof listing)) > 0)
    for (word at = 0; at < got;)
      {
        struct pc_entry *entry = (struct pc_entry *) (void *) (listing + at);
        at += entry->size;
        i32 pid = parse_pid (entry->name);
        if (pid <= 0 || count == MAX_TREE || pc_strlen (entry->name) > 20)
          continue;
        pids[count] = pid;
        parents[count] = parent_of (proc, entry->name);
        marked[count] = 0;
        count++;
      }
  return count;
}

static int
is_marked (u32 count, i32 pid)
{
  for (u32 i = 0; i < count; i++)
    if (pids[i] == pid)
      return marked[i];
  return 0;
}

static u32
mark_descendants (u32 count, i32 root)
{
  u32 total = 0;
  u32 before;
  do
    {
      before = total;
      for (u32 i = 0; i < count; i++)
        if (!marked[i] && (parents[i] == root || is_marked (count, parents[i])))
          {
            marked[i] = 1;
            total++;
          }
    }
  while (total != before);
  return total;
}

int
pc_kill_tree (int proc, i32 root, const i32 *command)
{
  /* Each pass kills the processes that it has listed, and the next pass finds those that were forked meanwhile.
     A fork bomb loses: a killed process forks no more, so only processes that were not listed yet can. */
  for (u32 pass = 0; pass < 1000; pass++)
    {
      cleanup_fd int listed = (int) sys_openat (proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
      if (listed < 0)
        return listed;
      u32 count = list_processes (listed);
      if (count == 0)
        return -ENOENT; /* not even PID 1: this is no procfs of the container */
      /* A supervisor that has not cloned its command yet has no descendants now, but will have some. */
      if (mark_descendants (count, root) == 0 && __atomic_load_n (command, __ATOMIC_ACQUIRE) != -1)
        return 0;
      for (u32 i = 0; i < count; i++)
        if (marked[i])
          sys_kill (pids[i], SIGKILL_);
      if (pass > 2)
        {
          i64 pause[2] = { 0, 200000 };
          sys_nanosleep (pause, 0);
        }
    }
  return -EBUSY;
}

_Noreturn void
pc_supervise (i32 *command, int channel)
{
  u64 blocked = ~0ull;
  sys_rt_sigprocmask (SIG_SETMASK_, &blocked, 0, 8);
  for (int fd = 0; fd < 3; fd++)
    sys_close (fd);
  /* Keep only the channel: streams would stay open until the last orphan exits. */
  if (channel > 3)
    sys_close_range (3, channel - 1, 0);
  sys_close_range (channel + 1, ~0u, 0);
  for (;;)
    {
      i32 status = 0;
      struct pc_kernel_usage usage;
      word pid = sys_wait4 (-1, &status, 0, &usage);
      if (pid > 0 && pid == *command)
        {
          *command = 0;
          struct pc_record record;
          pc_exited_record (&record, status, &usage);
          (void) pc_send_record (channel, &record, -1);
          pc_close_fd (&channel);
        }
      if (pid == -ECHILD)
        sys_exit (0);
    }
}
