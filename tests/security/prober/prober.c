/* Measure what a process can reach.  Each line is a finding: axis, key and outcome, separated by tabs.

   A call of which a filter may say something is made twice, each time in a child.  First behind one more
   filter that answers SECCOMP_RET_TRACE for it: without a tracer the kernel returns ENOSYS and runs nothing,
   unless a filter that was there before refuses, which weighs more (seccomp(2)).  This separates the filter's
   EPERM from the kernel's.  Only what passes is then called in earnest, with arguments that no kernel takes.

   Built static, so that it runs in an empty root.  It writes to no file of the kernel and leaves nothing. */

#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array) (sizeof (array) / sizeof *(array))

enum {
  LAST_CALL = 600,
  WAIT_MS = 3000,     /* for a child that blocks; all but pause(2) come back at once */
  PAUSE_MS = 100,
  READ_MS = 200,
  WALK_SECONDS = 40,
  WALK_FILES = 200000,
  WALK_DEPTH = 16,
};

/* Outcome of a call in a child; an errno is kept as it is. */
enum { WORKED = 0, KILLED = -1, DIED = -2, BLOCKED = -3, UNFILTERED = -4 };

struct call {
  long nr;
  long args[6];
};

static volatile int *answer; /* shared with the child of the moment */
static pid_t self;

static const char *
error_name (int error)
{
  static char number[16];
  const char *name = strerrorname_np (error);

  if (name != NULL)
    return name;
  snprintf (number, sizeof number, "errno%d", error);
  return number;
}

static void
say (const char *axis, const char *key, const char *outcome)
{
  printf ("%s\t%s\t%s\n", axis, key, outcome);
}

/* ---- calls -------------------------------------------------------------------------------------------- */

static int
makes_a_process (long nr)
{
#ifdef __NR_fork
  if (nr == __NR_fork)
    return 1;
#endif
  return nr == __NR_clone || nr == __NR_clone3;
}

static void
make_call (const struct call *call)
{
  long result;

#ifdef __NR_vfork
  if (call->nr == __NR_vfork)
    {
      /* Only the wrapper of libc keeps the return address that parent and child share. */
      pid_t child = vfork ();
      if (child == 0)
        _exit (0);
      *answer = child < 0 ? errno : WORKED;
      return;
    }
#endif
  result = syscall (call->nr, call->args[0], call->args[1], call->args[2], call->args[3], call->args[4],
                    call->args[5]);
  if (result == 0 && makes_a_process (call->nr))
    _exit (0);
  *answer = result == -1 ? errno : WORKED;
}

static int
take_on_filter (long nr)
{
  struct sock_filter code[] = {
    BPF_STMT (BPF_LD | BPF_W | BPF_ABS, offsetof (struct seccomp_data, nr)),
    BPF_JUMP (BPF_JMP | BPF_JEQ | BPF_K, (unsigned) nr, 0, 1),
    BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_TRACE),
    BPF_STMT (BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = { COUNT (code), code };

  return prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
         || prctl (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0;
}

#ifdef __x86_64__
static void
make_foreign_call (long nr)
{
  long result;

  /* i386's own way in; the first two arguments are 1 and NULL, as socketcall(SYS_SOCKET, NULL) has them. */
  __asm__ volatile ("int $0x80" : "=a"(result) : "a"(nr), "b"(1L), "c"(0L) : "memory");
  *answer = result < 0 && result > -4096 ? (int) -result : WORKED;
}
#endif

enum how { ASK_FILTER, EARNEST, FOREIGN };

static void
child_main (const struct call *call, enum how how)
{
  sigset_t none;

  prctl (PR_SET_DUMPABLE, 0, 0, 0, 0); /* a child that crashes leaves no core and starts no handler */
  setsid ();                           /* no terminal to hang up, no group to signal */
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  *answer = DIED;
#ifdef __x86_64__
  if (how == FOREIGN)
    {
      make_foreign_call (call->nr);
      _exit (0);
    }
#endif
  if (how == ASK_FILTER && take_on_filter (call->nr))
    *answer = UNFILTERED;
  else
    make_call (call);
  _exit (0);
}

static void
reap_strays (void)
{
  while (waitpid (-1, NULL, WNOHANG | __WALL) > 0)
    ;
}

/* Waits for the child; kills it when it takes too long. */
static int
outcome_of (pid_t child, int patience_ms)
{
  struct timespec begun, now, slice = { 0, 20 * 1000 * 1000 };
  int status, blocked = 0;
  sigset_t chld;

  sigemptyset (&chld);
  sigaddset (&chld, SIGCHLD);
  clock_gettime (CLOCK_MONOTONIC, &begun);
  while (waitpid (child, &status, WNOHANG | __WALL) == 0)
    {
      clock_gettime (CLOCK_MONOTONIC, &now);
      if ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 > patience_ms)
        {
          blocked = 1;
          kill (child, SIGKILL);
          waitpid (child, &status, __WALL);
          break;
        }
      sigtimedwait (&chld, NULL, &slice);
    }
  reap_strays ();
  if (blocked)
    return BLOCKED;
  if (WIFSIGNALED (status) && WTERMSIG (status) == SIGSYS)
    return KILLED;
  return *answer;
}

static int
in_child (const struct call *call, enum how how, int patience_ms)
{
  pid_t child;

  fflush (stdout);
  child = fork ();
  if (child < 0)
    {
      perror ("prober: fork");
      exit (1);
    }
  if (child == 0)
    child_main (call, how);
  return outcome_of (child, patience_ms);
}

struct verdict {
  char filter[24]; /* passed, killed, or the errno that a filter gives */
  int result;      /* the result that the process sees */
};

static struct verdict
judge (const struct call *call, int patience_ms)
{
  struct verdict verdict;
  int filtered = in_child (call, ASK_FILTER, WAIT_MS);

  verdict.result = filtered == ENOSYS || filtered == UNFILTERED ? in_child (call, EARNEST, patience_ms) : filtered;
  if (verdict.result == KILLED)
    strcpy (verdict.filter, "killed");
  else if (verdict.result < 0 || (filtered == ENOSYS && verdict.result != ENOSYS))
    strcpy (verdict.filter, "passed");
  else if (filtered == UNFILTERED && verdict.result != ENOSYS && verdict.result != EPERM)
    strcpy (verdict.filter, "passed"); /* no filter can be added here: believe what is seen */
  else
    snprintf (verdict.filter, sizeof verdict.filter, "%s", error_name (verdict.result));
  return verdict;
}

/* Any answer but a refusal is the kernel's own.  Some calls, uprobe(2) among them, no filter gets to see. */
static const char *
reach (const struct verdict *verdict)
{
  static const char *const refusals[] = { "EPERM", "ENOSYS", "killed" };
  size_t at;

  for (at = 0; at < COUNT (refusals); at++)
    if (strcmp (verdict->filter, refusals[at]) == 0)
      return refusals[at];
  return "reached";
}

/* The arguments of a call by number: -1 everywhere, which no call takes, but for these. */
static struct call
harmless (long nr)
{
  static const struct call special[] = {
    { __NR_kill, { 0x3fffffff, 0 } },
    { __NR_shmget, { 1, 1, 0 } }, /* flags of -1 would create one */
    { __NR_semget, { 1, 1, 0 } },
    { __NR_msgget, { 1, 0 } },
    { __NR_clone, { SIGCHLD } },
    { __NR_clone3, { 0 } },
    { __NR_personality, { 0xffffffff } },
    { __NR_socket, { 1, 1, 0 } },
    { __NR_socketpair, { 1, 1, 0, -1 } },
    { __NR_ioctl, { -1, 0, 0 } },
    { __NR_mknodat, { -1, -1, S_IFREG, 0 } },
    { __NR_fchmod, { -1, 0755 } }, /* modes with set-id bits are refused by argument */
    { __NR_fchmodat, { -1, -1, 0755, -1 } },
    { 452, { -1, -1, 0755, -1 } }, /* fchmodat2 */
    { __NR_openat, { -1, -1, -1, 0755 } },
    { __NR_futex, { 0, 1, 1 } }, /* an unknown operation is ENOSYS */
    { __NR_vhangup, { 0 } },
#ifdef __NR_mknod
    { __NR_mknod, { -1, S_IFREG, 0 } },
#endif
#ifdef __NR_open
    { __NR_chmod, { -1, 0755 } },
    { __NR_creat, { -1, 0755 } },
    { __NR_open, { -1, -1, 0755 } },
#endif
#ifdef __NR_modify_ldt
    { __NR_modify_ldt, { 0, -1, 0 } }, /* likewise */
#endif
  };
  struct call call = { nr, { -1, -1, -1, -1, -1, -1 } };
  size_t at;

  for (at = 0; at < COUNT (special); at++)
    if (special[at].nr == nr)
      return special[at];
  return call;
}

static void
probe_syscalls (void)
{
  char key[16];
  long nr;

  for (nr = 0; nr <= LAST_CALL; nr++)
    {
      struct call call = harmless (nr);
      int patience = WAIT_MS;
      struct verdict verdict;

#ifdef __NR_pause
      if (nr == __NR_pause)
        patience = PAUSE_MS;
#endif
      verdict = judge (&call, patience);
      snprintf (key, sizeof key, "%ld", nr);
      say ("syscall", key, reach (&verdict));
    }
}

static void
probe_with_arguments (const char *axis, const char *key, const struct call *call, const char *good)
{
  struct verdict verdict = judge (call, WAIT_MS);
  const char *outcome;
  char name[32];

  snprintf (name, sizeof name, "filter.%s", axis);
  say (name, key, verdict.filter);
  if (verdict.result == WORKED)
    outcome = good;
  else if (verdict.result > 0)
    outcome = error_name (verdict.result);
  else
    outcome = verdict.result == KILLED ? "killed" : "died";
  say (axis, key, outcome);
}

static void
probe_sockets (void)
{
  static const struct { int type; const char *name; } types[] = {
    { 1, "STREAM" }, { 2, "DGRAM" }, { 3, "RAW" }, { 5, "SEQPACKET" },
  };
  static const struct { int type; const char *name; int protocol; } internet[] = {
    { 1, "STREAM", 6 }, { 1, "STREAM", 132 }, { 1, "STREAM", 262 }, { 2, "DGRAM", 1 },   { 2, "DGRAM", 17 },
    { 2, "DGRAM", 58 }, { 2, "DGRAM", 115 },  { 2, "DGRAM", 136 },  { 3, "RAW", 1 },     { 3, "RAW", 58 },
    { 3, "RAW", 255 },  { 5, "SEQPACKET", 132 }, { 6, "DCCP", 33 },
  };
  int family, protocol;
  size_t at;
  char key[48];

  for (family = 0; family <= 46; family++)
    for (at = 0; at < COUNT (types); at++)
      {
        struct call call = { __NR_socket, { family, types[at].type, 0 } };
        snprintf (key, sizeof key, "%d/%s/0", family, types[at].name);
        probe_with_arguments ("socket", key, &call, "opened");
      }
  for (at = 0; at < 2 * COUNT (internet); at++)
    {
      size_t which = at / 2;
      struct call call = { __NR_socket, { at % 2 ? 10 : 2, internet[which].type, internet[which].protocol } };
      snprintf (key, sizeof key, "%ld/%s/%d", call.args[0], internet[which].name, internet[which].protocol);
      probe_with_arguments ("socket", key, &call, "opened");
    }
  for (protocol = 1; protocol <= 22; protocol++)
    {
      struct call call = { __NR_socket, { 16, 3, protocol } };
      snprintf (key, sizeof key, "16/RAW/%d", protocol);
      probe_with_arguments ("socket", key, &call, "opened");
    }
}

static void
probe_namespaces (void)
{
  static const struct { unsigned long flag; const char *name; } flags[] = {
    { 0x00020000, "NEWNS" },   { 0x02000000, "NEWCGROUP" }, { 0x04000000, "NEWUTS" },
    { 0x08000000, "NEWIPC" },
    { 0x10000000, "NEWUSER" }, { 0x20000000, "NEWPID" },    { 0x40000000, "NEWNET" },
    { 0x00000080, "NEWTIME" },
  };
  const unsigned long user = 0x10000000;
  size_t at;
  int with_user;
  char key[48];

  for (at = 0; at < COUNT (flags); at++)
    for (with_user = 0; with_user < (flags[at].flag == user ? 1 : 2); with_user++)
      {
        unsigned long flag = flags[at].flag | (with_user ? user : 0);
        const char *plus = with_user ? "NEWUSER+" : "";
        uint64_t structure[11] = { flag };
        struct call unshare_call = { __NR_unshare, { (long) flag } };
        struct call clone_call = { __NR_clone, { (long) flag | SIGCHLD } };
        struct call clone3_call = { __NR_clone3, { (long) structure, sizeof structure } };

        structure[4] = SIGCHLD;
        snprintf (key, sizeof key, "unshare/%s%s", plus, flags[at].name);
        probe_with_arguments ("clone", key, &unshare_call, "made");
        snprintf (key, sizeof key, "clone3/%s%s", plus, flags[at].name);
        probe_with_arguments ("clone", key, &clone3_call, "made");
        if (flags[at].flag == 0x80)
          continue; /* to clone(2) this bit belongs to the signal */
        snprintf (key, sizeof key, "clone/%s%s", plus, flags[at].name);
        probe_with_arguments ("clone", key, &clone_call, "made");
      }
}

static void
probe_ioctls (void)
{
  static const struct { unsigned command; const char *name; } commands[] = {
    { 0x5412, "TIOCSTI" }, { 0x541c, "TIOCLINUX" }, { 0x5423, "TIOCSETD" },
  };
  int terminal = open ("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
  int fd = terminal >= 0 ? terminal : 0;
  size_t at;
  char key[48];

  for (at = 0; at < COUNT (commands); at++)
    {
      struct call plain = { __NR_ioctl, { fd, commands[at].command, 0 } };
      struct call high = { __NR_ioctl, { fd, commands[at].command | 1L << 32, 0 } };

      probe_with_arguments ("ioctl", commands[at].name, &plain, "worked");
      snprintf (key, sizeof key, "%s+2^32", commands[at].name); /* CVE-2019-10063 */
      probe_with_arguments ("ioctl", key, &high, "worked");
    }
  if (terminal >= 0)
    close (terminal);
}

static void
probe_personalities (void)
{
  static const unsigned long values[] = {
    0x0, 0x8, 0x20000, 0x20008, 0xffffffff, 0x1, 0x4, 0x6, 0x10000, 0x40000, 0x80000, 0x100000, 0x200000,
    0x400000, 0x800000, 0x1000000, 0x2000000, 0x4000000, 0x8000000,
  };
  size_t at;
  char key[24];

  for (at = 0; at < COUNT (values); at++)
    {
      struct call call = { __NR_personality, { (long) values[at] } };
      snprintf (key, sizeof key, "0x%lx", values[at]);
      probe_with_arguments ("personality", key, &call, "set");
    }
}

static void
probe_foreign (void)
{
#ifdef __x86_64__
  static const struct { long nr; const char *name; } calls[] = {
    { 20, "i386/getpid" }, { 102, "i386/socketcall" },
  };
  struct call x32 = { 0x40000000 | __NR_getpid, { 0 } };
  struct verdict verdict;
  size_t at;

  for (at = 0; at < COUNT (calls); at++)
    {
      struct call call = { calls[at].nr, { 0 } };
      int result = in_child (&call, FOREIGN, WAIT_MS);
      const char *outcome = "reached";
      if (result == KILLED)
        outcome = "killed";
      else if (result == DIED) /* SIGSEGV: this kernel has no such entry */
        outcome = "absent";
      else if (result == ENOSYS || result == EPERM)
        outcome = error_name (result);
      say ("foreign", calls[at].name, outcome);
    }
  verdict = judge (&x32, WAIT_MS);
  say ("foreign", "x32/getpid", reach (&verdict));
#endif
}

/* ---- privileges --------------------------------------------------------------------------------------- */

static void
probe_prctl (void)
{
  static const struct { int option; const char *name; } options[] = {
    { PR_GET_NO_NEW_PRIVS, "NO_NEW_PRIVS" },
    { PR_GET_SECCOMP, "SECCOMP" },
    { PR_GET_SECUREBITS, "SECUREBITS" },
    { PR_GET_DUMPABLE, "DUMPABLE" },
    { PR_GET_KEEPCAPS, "KEEPCAPS" },
  };
  unsigned long long bounding = 0;
  char text[32];
  size_t at;
  int capability;

  for (at = 0; at < COUNT (options); at++)
    {
      int value = prctl (options[at].option, 0, 0, 0, 0);
      snprintf (text, sizeof text, "0x%x", (unsigned) value);
      say ("prctl", options[at].name, value < 0 ? error_name (errno) : text);
    }
  for (capability = 0; capability < 64; capability++)
    if (prctl (PR_CAPBSET_READ, capability, 0, 0, 0) == 1)
      bounding |= 1ull << capability;
  snprintf (text, sizeof text, "%016llx", bounding);
  say ("prctl", "CAPBSET_READ", text);
}

static void
probe_capabilities (void)
{
  FILE *status = fopen ("/proc/self/status", "re");
  char line[256], name[32], value[64];

  if (status == NULL)
    {
      say ("capability", "status", error_name (errno));
      return;
    }
  while (fgets (line, sizeof line, status) != NULL)
    if (strncmp (line, "Cap", 3) == 0 && sscanf (line, "%31[^:]: %63s", name, value) == 2)
      say ("capability", name, value);
  fclose (status);
}

/* ---- files -------------------------------------------------------------------------------------------- */

static uint64_t seen[1 << 18];

/* Folding makes many names one: say each only once. */
static void
say_once (const char *axis, const char *key, const char *outcome)
{
  uint64_t hash = 1469598103934665603ull;
  const char *parts[] = { axis, key };
  size_t at, slot, tries;

  for (at = 0; at < COUNT (parts); at++)
    for (const char *byte = parts[at]; *byte; byte++)
      hash = (hash ^ (unsigned char) *byte) * 1099511628211ull;
  hash |= hash == 0;
  slot = hash % COUNT (seen);
  for (tries = 0; seen[slot] && tries < COUNT (seen); tries++)
    {
      if (seen[slot] == hash)
        return;
      slot = (slot + 1) % COUNT (seen);
    }
  seen[slot] = hash;
  say (axis, key, outcome);
}

static int
is_number (const char *text, size_t length)
{
  size_t at;

  for (at = 0; at < length; at++)
    if (!isdigit ((unsigned char) text[at]))
      return 0;
  return length > 0;
}

/* /proc/<own> is /proc/PID, any other process /proc/OTHER; a part that is a number is N, and below /sys every
   run of digits is. */
static void
fold (const char *path, char *folded, size_t size)
{
  int below_sys = strncmp (path, "/sys", 4) == 0, part = 0;
  size_t used = 0;

  while (*path && used + 8 < size)
    {
      size_t length = strcspn (path, "/");
      if (is_number (path, length))
        {
          const char *name = "N";
          if (part == 2 && strncmp (path - 6, "/proc/", 6) == 0)
            name = atoi (path) == self ? "PID" : "OTHER";
          used += (size_t) snprintf (folded + used, size - used, "%s", name);
          path += length;
        }
      else
        for (; length > 0 && used + 8 < size; length--, path++)
          {
            int digit = below_sys && isdigit ((unsigned char) *path);
            if (!digit || used == 0 || folded[used - 1] != '#')
              folded[used++] = digit ? '#' : *path;
          }
      if (*path == '/')
        {
          folded[used++] = *path++;
          part++;
        }
    }
  folded[used] = '\0';
}

static void
nothing (int signal)
{
  (void) signal; /* it only has to interrupt a read */
}

static void
alarm_after (int milliseconds)
{
  struct itimerval timer = { { 0, 0 }, { milliseconds / 1000, milliseconds % 1000 * 1000 } };
  setitimer (ITIMER_REAL, &timer, NULL);
}

static void
try_file (const char *path)
{
  char folded[PATH_MAX], bytes[64];
  int fd;

  fold (path, folded, sizeof folded);
  alarm_after (READ_MS);
  fd = open (path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY);
  if (fd >= 0)
    {
      say_once ("writable", folded, "opened");
      close (fd);
    }
  fd = open (path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY);
  if (fd >= 0)
    {
      /* Reading kmsg consumes messages of other readers. */
      if (strstr (path, "kmsg") != NULL || read (fd, bytes, sizeof bytes) > 0)
        say_once ("readable", folded, "read");
      close (fd);
    }
  alarm_after (0);
}

static void
try_device (const char *path)
{
  static const struct { int mode; const char *name; } modes[] = {
    { O_RDWR, "rw" }, { O_RDONLY, "r" }, { O_WRONLY, "w" },
  };
  char folded[PATH_MAX];
  size_t at;

  if (strstr (path, "watchdog") != NULL)
    return; /* opening one starts it */
  fold (path, folded, sizeof folded);
  for (at = 0; at < COUNT (modes); at++)
    {
      int fd = open (path, modes[at].mode | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
      if (fd >= 0)
        {
          say_once ("device", folded, modes[at].name);
          close (fd);
          return;
        }
    }
}

static time_t walk_until;
static long walk_left = WALK_FILES;

static void
walk (const char *top, int depth, int devices)
{
  DIR *directory = opendir (top);
  struct dirent *entry;
  char path[PATH_MAX];

  if (directory == NULL)
    return;
  while ((entry = readdir (directory)) != NULL)
    {
      struct stat found;

      if (strcmp (entry->d_name, ".") == 0 || strcmp (entry->d_name, "..") == 0)
        continue;
      if ((size_t) snprintf (path, sizeof path, "%s/%s", top, entry->d_name) >= sizeof path)
        continue;
      if (--walk_left < 0 || time (NULL) > walk_until)
        {
          say_once ("host", "truncated", "1");
          break;
        }
      if (lstat (path, &found) < 0)
        continue;
      if (S_ISDIR (found.st_mode))
        {
          int threads = strcmp (entry->d_name, "task") == 0 && strncmp (top, "/proc/", 6) == 0;
          if (!threads && depth < WALK_DEPTH)
            walk (path, depth + 1, devices);
        }
      else if (!devices && S_ISREG (found.st_mode))
        try_file (path);
      else if (devices && (S_ISCHR (found.st_mode) || S_ISBLK (found.st_mode)))
        try_device (path);
    }
  closedir (directory);
}

static void
probe_kernel_files (void)
{
  struct sigaction action = { .sa_handler = nothing };

  sigaction (SIGALRM, &action, NULL);
  walk_until = time (NULL) + WALK_SECONDS;
  walk ("/proc", 0, 0);
  walk ("/sys", 0, 0);
}

/* The name of a file to create in a directory. */
static int
probe_name (char *path, size_t size, const char *directory, const char *name)
{
  const char *base = strcmp (directory, "/") == 0 ? "" : directory;
  return (size_t) snprintf (path, size, "%s/.pyc-probe-%d%s", base, (int) self, name) < size;
}

static void
try_place (const char *place)
{
  char path[PATH_MAX];
  struct stat found;
  int fd;

  if (strncmp (place, "/proc", 5) == 0 || strncmp (place, "/sys", 4) == 0 || stat (place, &found) < 0)
    return;
  if (S_ISREG (found.st_mode))
    {
      fd = open (place, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
      if (fd >= 0)
        {
          say_once ("writable", place, "opened");
          close (fd);
        }
      return;
    }
  if (!S_ISDIR (found.st_mode) || !probe_name (path, sizeof path, place, ""))
    return;
  fd = open (path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd >= 0)
    {
      say_once ("writable", place, "created");
      unlink (path);
      close (fd);
    }
}

static void
probe_places (void)
{
  static const char *const usual[] = {
    "/", "/etc", "/usr", "/bin", "/lib", "/root", "/home", "/tmp", "/var", "/run", "/dev", "/dev/shm", "/srv",
    "/opt",
  };
  FILE *mounts = fopen ("/proc/self/mountinfo", "re");
  char line[PATH_MAX * 2], place[PATH_MAX], count[16];
  int number = 0;
  size_t at;

  for (at = 0; at < COUNT (usual); at++)
    try_place (usual[at]);
  while (mounts != NULL && fgets (line, sizeof line, mounts) != NULL)
    {
      number++;
      if (sscanf (line, "%*s %*s %*s %*s %4095s", place) == 1)
        try_place (place);
    }
  if (mounts != NULL)
    fclose (mounts);
  snprintf (count, sizeof count, "%d", number);
  say ("host", "mounts", count);
}

static void
probe_devices (void)
{
  static const struct { mode_t kind; unsigned major, minor; const char *name; } nodes[] = {
    { S_IFCHR, 1, 1, "mknod/c1:1" },
    { S_IFCHR, 1, 11, "mknod/c1:11" },
    { S_IFBLK, 8, 0, "mknod/b8:0" },
    { S_IFCHR, 10, 229, "mknod/c10:229" },
  };
  static const char *const places[] = { "/tmp", "/dev", "/run", "/" };
  char path[PATH_MAX];
  size_t at, place;

  walk_until = time (NULL) + WALK_SECONDS;
  walk ("/dev", 0, 1);
  for (at = 0; at < COUNT (nodes); at++)
    {
      const char *outcome = NULL;
      int opened = 0;

      /* The best that any place gives; only a mount without nodev lets a node be opened. */
      for (place = 0; place < COUNT (places) && !opened; place++)
        {
          int fd;

          if (!probe_name (path, sizeof path, places[place], "-node"))
            continue;
          if (mknod (path, nodes[at].kind | 0600, makedev (nodes[at].major, nodes[at].minor)) < 0)
            {
              if (outcome == NULL)
                outcome = error_name (errno);
              continue;
            }
          fd = open (path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
          opened = fd >= 0;
          outcome = opened ? "opened" : "made";
          if (fd >= 0)
            close (fd);
          unlink (path);
        }
      say ("device", nodes[at].name, outcome);
    }
}

static void
probe_processes (void)
{
  DIR *directory = opendir ("/proc");
  struct dirent *entry;
  char count[16];
  int number = 0;

  while (directory != NULL && (entry = readdir (directory)) != NULL)
    number += is_number (entry->d_name, strlen (entry->d_name));
  if (directory != NULL)
    closedir (directory);
  snprintf (count, sizeof count, "%d", number);
  say ("host", "pids", count);
}

int
main (void)
{
  sigset_t chld;

  self = getpid ();
  answer = mmap (NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (answer == MAP_FAILED)
    {
      perror ("prober: mmap");
      return 1;
    }
  sigemptyset (&chld);
  sigaddset (&chld, SIGCHLD);
  sigprocmask (SIG_BLOCK, &chld, NULL);
  probe_prctl ();
  probe_capabilities ();
  probe_syscalls ();
  probe_sockets ();
  probe_namespaces ();
  probe_ioctls ();
  probe_personalities ();
  probe_foreign ();
  probe_processes ();
  probe_kernel_files ();
  probe_places ();
  probe_devices ();
  say ("end", "end", "complete");
  return fflush (stdout) == 0 ? 0 : 1;
}
