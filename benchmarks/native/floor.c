/* The floor: one C program that does what a container start needs and nothing else.
 *
 * floor ROOTFS WORK FILTER COUNT PAUSE_MS
 *
 * No pool, no agent, no library: per start a cgroup in v2 and in v1 memory and pids with the same
 * limits, clone3 into it, id maps of a 65536 block, an idmapped layer, an overlay on disk, /proc, /dev,
 * devpts, shm, tmp, the masks, pivot_root, keyring, Landlock, no capability, no_new_privs, the filter, and
 * execve of /true as PID 1 with pipes for its output.  Prints a line per start: nanoseconds until the exit
 * status is known, and until everything is removed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 1342177280
#define CHECK(call)                                                                                \
  ({                                                                                               \
    long check_result = (long) (call);                                                             \
    if (check_result < 0)                                                                          \
      {                                                                                            \
        dprintf (2, "floor: %s: %s\n", #call, strerror (errno));                                   \
        _exit (1);                                                                                 \
      }                                                                                            \
    check_result;                                                                                  \
  })

static const char *const v1[] = { "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids" };
static const char unified[] = "/sys/fs/cgroup/unified";
static struct sock_fprog filter;
static const char *rootfs;
static const char *work;

static void
put (const char *path, const char *text)
{
  int fd = (int) CHECK (open (path, O_WRONLY | O_CLOEXEC));
  CHECK (write (fd, text, strlen (text)));
  close (fd);
}

static int64_t
now (void)
{
  struct timespec at;
  clock_gettime (CLOCK_MONOTONIC, &at);
  return (int64_t) at.tv_sec * 1000000000 + at.tv_nsec;
}

static int
make_fs (const char *type, const char *const options[][2], unsigned attributes)
{
  int fs = (int) CHECK (syscall (SYS_fsopen, type, FSOPEN_CLOEXEC));
  for (int i = 0; options != NULL && options[i][0] != NULL; i++)
    CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_SET_STRING, options[i][0], options[i][1], 0));
  CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
  int mount = (int) CHECK (syscall (SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes));
  close (fs);
  return mount;
}

static void
attach (int mount, int root, const char *target)
{
  int at = (int) CHECK (openat (root, target, O_PATH | O_CLOEXEC));
  CHECK (syscall (SYS_move_mount, mount, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  close (at);
  close (mount);
}

static void
cover (int root, const char *target, int source)
{
  struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
  int at = openat (root, target, O_PATH | O_CLOEXEC);
  if (at < 0)
    return;
  int copy = (int) CHECK (syscall (SYS_open_tree, source < 0 ? at : source, "",
                                   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE));
  CHECK (syscall (SYS_mount_setattr, copy, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr));
  CHECK (syscall (SYS_move_mount, copy, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  close (copy);
  close (at);
}

static int
build_root (int layer, int store, int dev)
{
  static const char *const pts[][2] = { { "newinstance", NULL }, { NULL, NULL } };
  static const char *const shm[][2] = { { "size", "64m" }, { "mode", "1777" }, { NULL, NULL } };
  static const char *const masks[] = { "proc/acpi", "proc/asound", "proc/interrupts", "proc/kcore", "proc/keys",
                                       "proc/latency_stats", "proc/sched_debug", "proc/scsi", "proc/timer_list",
                                       "proc/timer_stats" };
  static const char *const fixed[] = { "proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger" };
  unsigned guarded = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  (void) pts;

  int mask = (int) CHECK (open ("/srv/mask", O_PATH | O_CLOEXEC));
  int empty = (int) CHECK (open ("/srv/empty", O_PATH | O_CLOEXEC));

  /* Mounts of the child's own namespace, as overlay wants them. */
  int slot = (int) CHECK (open (work, O_PATH | O_CLOEXEC));
  CHECK (syscall (SYS_move_mount, store, "", slot, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  int lower = (int) CHECK (open (rootfs, O_PATH | O_CLOEXEC));
  CHECK (syscall (SYS_move_mount, layer, "", lower, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  CHECK (mkdirat (store, "u", 0755));
  CHECK (mkdirat (store, "w", 0700));
  int upper = (int) CHECK (openat (store, "u", O_PATH | O_CLOEXEC));
  int scratch = (int) CHECK (openat (store, "w", O_PATH | O_CLOEXEC));
  int fs = (int) CHECK (syscall (SYS_fsopen, "overlay", FSOPEN_CLOEXEC));
  CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_SET_FD, "lowerdir+", NULL, layer));
  CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_SET_FD, "upperdir", NULL, upper));
  CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_SET_FD, "workdir", NULL, scratch));
  CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "userxattr", NULL, 0));
  CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "volatile", NULL, 0));
  CHECK (syscall (SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
  int root = (int) CHECK (syscall (SYS_fsmount, fs, FSMOUNT_CLOEXEC, guarded));
  close (fs);
  int at = (int) CHECK (open ("/mnt", O_PATH | O_CLOEXEC));
  CHECK (syscall (SYS_move_mount, root, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  attach (make_fs ("proc", NULL, guarded | MOUNT_ATTR_NOEXEC), root, "proc");
  attach (dev, root, "dev");
  attach (make_fs ("devpts", NULL, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), root, "dev/pts");
  attach (make_fs ("tmpfs", shm, guarded | MOUNT_ATTR_NOEXEC), root, "dev/shm");
  attach (make_fs ("tmpfs", shm, guarded), root, "tmp");
  for (size_t i = 0; i < sizeof masks / sizeof *masks; i++)
    {
      struct stat seen;
      if (fstatat (root, masks[i], &seen, 0) == 0)
        cover (root, masks[i], S_ISDIR (seen.st_mode) ? empty : mask);
    }
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
    cover (root, fixed[i], -1);
  return root;
}

static void
restrict_self (void)
{
  struct
  {
    uint64_t fs, net, scoped;
  } rules = { .fs = 0xffff, .scoped = 3 };
  int abi = (int) syscall (SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (abi >= 6)
    {
      int set = (int) CHECK (syscall (SYS_landlock_create_ruleset, &rules, sizeof rules, 0));
      struct landlock_path_beneath_attr beneath = { .allowed_access = 0xffff & ~((1 << 6) | (1 << 11)) };
      beneath.parent_fd = (int) CHECK (open ("/", O_PATH | O_CLOEXEC));
      CHECK (syscall (SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0));
      close (beneath.parent_fd);
      CHECK (syscall (SYS_landlock_restrict_self, set, 0));
      close (set);
    }
}

static void
drop_everything (void)
{
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct none[2] = { 0 };
  for (int cap = 0; prctl (PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
    CHECK (prctl (PR_CAPBSET_DROP, cap, 0, 0, 0));
  CHECK (prctl (PR_SET_SECUREBITS, 0xef, 0, 0, 0));
  CHECK (syscall (SYS_capset, &header, none));
  CHECK (prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  CHECK (syscall (SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
}

static void
run_child (const int tasks[2], int sync, int layer, int store, int dev, const int out[2])
{
  char *argv[] = { "true", NULL };
  struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
  char go;

  for (int i = 0; i < 2; i++)
    CHECK (write (tasks[i], "0", 1));
  CHECK (unshare (CLONE_NEWNET));
  int s = (int) CHECK (socket (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  CHECK (ioctl (s, SIOCSIFFLAGS, &lo));
  close (s);
  CHECK (sethostname ("floor", 5));
  CHECK (unshare (CLONE_NEWCGROUP | CLONE_NEWTIME));
  CHECK (read (sync, &go, 1));
  CHECK (setresgid (0, 0, 0));
  CHECK (setresuid (0, 0, 0));
  int root = build_root (layer, store, dev);
  CHECK (fchdir (root));
  CHECK (syscall (SYS_pivot_root, ".", "."));
  CHECK (syscall (SYS_umount2, ".", 2));
  CHECK (chdir ("/"));
  CHECK (syscall (SYS_keyctl, 1, NULL));
  restrict_self ();
  CHECK (dup2 (out[0], 1));
  CHECK (dup2 (out[1], 2));
  CHECK (close_range (3, ~0U, CLOSE_RANGE_CLOEXEC));
  drop_everything ();
  CHECK (execve ("/true", argv, argv + 1));
}

static void
one_start (int number, int dev_template)
{
  char path[5][320];
  char long_path[400];
  char text[64];
  int pipes[2][2];
  int sync[2];
  int tasks[2];
  int pidfd = -1;
  int64_t begun = now ();

  snprintf (path[0], sizeof *path, "%s/pycfloor%d", unified, number);
  CHECK (mkdir (path[0], 0755));
  for (int i = 0; i < 2; i++)
    {
      snprintf (path[1 + i], sizeof *path, "%s/pycfloor%d", v1[i], number);
      CHECK (mkdir (path[1 + i], 0755));
      snprintf (long_path, sizeof long_path, "%s/%s", path[1 + i], i == 0 ? "memory.limit_in_bytes" : "pids.max");
      put (long_path, i == 0 ? "536870912" : "128");
      if (i == 0)
        {
          snprintf (long_path, sizeof long_path, "%s/memory.memsw.limit_in_bytes", path[1]);
          put (long_path, "536870912");
        }
      snprintf (long_path, sizeof long_path, "%s/tasks", path[1 + i]);
      tasks[i] = (int) CHECK (open (long_path, O_WRONLY | O_CLOEXEC));
    }
  snprintf (path[4], sizeof *path, "%s/%d", work, number);
  CHECK (mkdir (path[4], 0700));
  CHECK (chown (path[4], BLOCK, BLOCK));
  CHECK (pipe2 (pipes[0], O_CLOEXEC));
  CHECK (pipe2 (pipes[1], O_CLOEXEC));
  CHECK (pipe2 (sync, O_CLOEXEC));
  int layer = (int) CHECK (syscall (SYS_open_tree, AT_FDCWD, rootfs, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
  int store = (int) CHECK (syscall (SYS_open_tree, AT_FDCWD, path[4], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
  int dev = (int) CHECK (syscall (SYS_open_tree, dev_template, "",
                                  OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE));
  int group = (int) CHECK (open (path[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct clone_args args = {
    .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD
             | CLONE_INTO_CGROUP,
    .pidfd = (uint64_t) (uintptr_t) &pidfd,
    .exit_signal = SIGCHLD,
    .cgroup = (uint64_t) group,
  };
  pid_t pid = (pid_t) CHECK (syscall (SYS_clone3, &args, sizeof args));
  if (pid == 0)
    run_child (tasks, sync[0], layer, store, dev, (int[]){ pipes[0][1], pipes[1][1] });
  snprintf (text, sizeof text, "0 %d 65536\n", BLOCK);
  snprintf (long_path, sizeof long_path, "/proc/%d/uid_map", pid);
  put (long_path, text);
  snprintf (long_path, sizeof long_path, "/proc/%d/gid_map", pid);
  put (long_path, text);
  snprintf (long_path, sizeof long_path, "/proc/%d/ns/user", pid);
  int user = (int) CHECK (open (long_path, O_RDONLY | O_CLOEXEC));
  struct mount_attr attr = {
    .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_IDMAP,
    .userns_fd = (uint64_t) user,
  };
  CHECK (syscall (SYS_mount_setattr, layer, "", AT_EMPTY_PATH, &attr, sizeof attr));
  CHECK (write (sync[1], "g", 1));
  int done[] = { user, layer, store, dev, group, tasks[0], tasks[1], sync[0], sync[1], pipes[0][1], pipes[1][1] };
  for (size_t i = 0; i < sizeof done / sizeof *done; i++)
    close (done[i]);
  char waste[512];
  for (int i = 0; i < 2; i++)
    {
      while (read (pipes[i][0], waste, sizeof waste) > 0)
        continue;
      close (pipes[i][0]);
    }
  int status = 0;
  CHECK (waitpid (pid, &status, 0));
  int64_t answered = now ();
  close (pidfd);
  if (status != 0)
    {
      dprintf (2, "floor: status %d\n", status);
      exit (1);
    }
  for (int i = 0; i < 3; i++)
    CHECK (rmdir (path[i]));
  static const char *const left[] = { "w/work/incompat/volatile/dirty", "w/work/incompat/volatile",
                                      "w/work/incompat", "w/work/work", "w/work" };
  for (size_t i = 0; i < sizeof left / sizeof *left; i++)
    {
      snprintf (long_path, sizeof long_path, "%s/%s", path[4], left[i]);
      if (rmdir (long_path) < 0)
        unlink (long_path);
    }
  snprintf (long_path, sizeof long_path, "%s/w", path[4]);
  CHECK (rmdir (long_path));
  snprintf (long_path, sizeof long_path, "%s/u", path[4]);
  CHECK (rmdir (long_path));
  CHECK (rmdir (path[4]));
  printf ("%lld %lld\n", (long long) (answered - begun), (long long) (now () - begun));
}

static int
make_dev (void)
{
  static const char *const nodes[] = { "null", "zero", "full", "random", "urandom", "tty" };
  static const char *const size[][2] = { { "size", "64k" }, { "mode", "755" }, { NULL, NULL } };
  char path[64];
  int dev = make_fs ("tmpfs", size, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
  CHECK (mkdirat (dev, "pts", 0755));
  CHECK (mkdirat (dev, "shm", 0755));
  int at = (int) CHECK (open ("/mnt", O_PATH | O_CLOEXEC));
  CHECK (syscall (SYS_move_mount, dev, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
    {
      close ((int) CHECK (openat (dev, nodes[i], O_CREAT | O_EXCL | O_CLOEXEC, 0444)));
      snprintf (path, sizeof path, "/dev/%s", nodes[i]);
      int node = (int) CHECK (syscall (SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
      attach (node, dev, nodes[i]);
    }
  int tree = (int) CHECK (syscall (SYS_open_tree, AT_FDCWD, "/mnt", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
  CHECK (syscall (SYS_umount2, "/mnt", 2));
  close (dev);
  close (at);
  return tree;
}

int
main (int argc, char **argv)
{
  static const char *const none[][2] = { { NULL, NULL } };
  if (argc != 6)
    return 2;
  rootfs = argv[1];
  work = argv[2];
  int fd = (int) CHECK (open (argv[3], O_RDONLY | O_CLOEXEC));
  struct stat seen;
  CHECK (fstat (fd, &seen));
  filter.filter = malloc ((size_t) seen.st_size);
  filter.len = (unsigned short) ((size_t) seen.st_size / sizeof (struct sock_filter));
  CHECK (read (fd, filter.filter, (size_t) seen.st_size));
  CHECK (unshare (CLONE_NEWNS));
  CHECK (syscall (SYS_mount, "", "/", NULL, 16384 | (1 << 19), NULL));
  int dev = make_dev ();
  int blank = make_fs ("tmpfs", none, 0);
  CHECK (mkdirat (blank, "empty", 0555));
  close ((int) CHECK (openat (blank, "mask", O_CREAT | O_CLOEXEC, 0444)));
  int place = (int) CHECK (open ("/srv", O_PATH | O_CLOEXEC));
  CHECK (syscall (SYS_move_mount, blank, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
  int count = atoi (argv[4]);
  int pause = atoi (argv[5]);
  for (int i = 0; i < count; i++)
    {
      one_start (i + (int) getpid () * 1000, dev);
      if (pause > 0)
        usleep ((useconds_t) pause * 1000);
    }
  return 0;
}
