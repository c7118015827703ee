#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void
show_file (const char *path)
{
  char line[8192];
  FILE *file = fopen (path, "r");
  if (file == NULL)
    {
      printf ("%s: errno %d\n", path, errno);
      return;
    }
  while (fgets (line, sizeof line, file) != NULL)
    printf ("%s: %s", path, line);
  fclose (file);
}

static void
show_open (const char *path, int flags)
{
  int fd = open (path, flags, 0600);
  printf ("open %s %x: %d\n", path, flags, fd < 0 ? errno : 0);
  if (fd >= 0)
    close (fd);
  if (fd >= 0 && (flags & O_CREAT))
    unlink (path);
}

static void
show_stat (const char *path)
{
  struct stat seen;
  if (lstat (path, &seen) < 0)
    printf ("stat %s: errno %d\n", path, errno);
  else
    printf ("stat %s: %o uid %u gid %u dev %lx\n", path, seen.st_mode, seen.st_uid, seen.st_gid,
            (unsigned long) seen.st_rdev);
}

static void
show_descriptors (void)
{
  for (int fd = 0; fd < 4096; fd++)
    {
      char path[64], target[512];
      if (fcntl (fd, F_GETFD) < 0)
        continue;
      snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
      ssize_t n = readlink (path, target, sizeof target - 1);
      printf ("fd %d: %.*s\n", fd, n < 0 ? 0 : (int) n, target);
    }
}

static void
show_status (void)
{
  static const char *wanted[] = { "Umask", "Uid", "Gid", "Groups", "Sig", "Shd", "Cap", "NoNewPrivs",
                                  "Seccomp", "Cpus_allowed_list" };
  char line[4096];
  FILE *file = fopen ("/proc/self/status", "r");
  while (file != NULL && fgets (line, sizeof line, file) != NULL)
    for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++)
      if (strncmp (line, wanted[i], strlen (wanted[i])) == 0 && strncmp (line, "SigQ", 4) != 0)
        printf ("status %s", line);
  if (file != NULL)
    fclose (file);
}

/* Landlock domains stack up to a limit, so the number that can still be added gives the number present. */
static void
show_landlock (void)
{
  __u64 handled = 1;
  int added = 0;
  int fd = (int) syscall (SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
  while (fd >= 0 && added < 64 && syscall (SYS_landlock_restrict_self, fd, 0) == 0)
    added++;
  printf ("landlock: ruleset %d, %d more, errno %d\n", fd < 0 ? -1 : 0, added, errno);
}

static void
show_namespaces (int count, char **hosts)
{
  for (int i = 0; i < count; i++)
    {
      char path[64], target[64] = "";
      char *colon = strchr (hosts[i], ':');
      snprintf (path, sizeof path, "/proc/self/ns/%.*s", (int) (colon - hosts[i]), hosts[i]);
      ssize_t n = readlink (path, target, sizeof target - 1);
      char *inode = n < 0 ? NULL : strchr (target, '[');
      printf ("namespace %.*s: %s\n", (int) (colon - hosts[i]), hosts[i],
              inode == NULL ? "unknown" : strtoul (inode + 1, NULL, 10) == strtoul (colon + 1, NULL, 10)
              ? "the host's" : "differs");
    }
}

static void
show_files (void)
{
  static const char *files[] = { "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups",
    "/proc/self/mountinfo", "/proc/self/cgroup", "/proc/self/oom_score_adj", "/proc/self/limits",
    "/proc/self/timens_offsets", "/proc/1/cgroup" };
  static const char *covered[] = { "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/iomem",
    "/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/pressure", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/1/status", "/proc/1/fd", "/dev/null", "/dev/pts", "/dev/shm", "/tmp", "/" };
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
    show_file (files[i]);
  for (unsigned i = 0; i < sizeof covered / sizeof *covered; i++)
    show_stat (covered[i]);
}

static void
show_place (void)
{
  char name[256];
  struct ifreq loopback = { .ifr_name = "lo" };

  gethostname (name, sizeof name);
  printf ("hostname %s\n", name);
  printf ("session: leader %d, group %d, terminal %d\n", getsid (0) == getpid (), getpgrp () == getpid (),
          open ("/dev/tty", O_RDWR));
  printf ("parent %d, cwd %s\n", getppid (), getcwd (name, sizeof name) ? name : "?");
  printf ("nice %d, policy %d, personality %x\n", getpriority (PRIO_PROCESS, 0), sched_getscheduler (0),
          (unsigned) personality (0xffffffff));
  int fd = socket (AF_INET, SOCK_DGRAM, 0);
  printf ("loopback: %d flags %x\n", ioctl (fd, SIOCGIFFLAGS, &loopback), loopback.ifr_flags);
  close (fd);
  show_file ("/proc/self/net/route");
}

static void
show_attempts (void)
{
  show_open ("/new", O_WRONLY | O_CREAT);
  show_open ("/ro/new", O_WRONLY | O_CREAT);
  show_open ("/tmp/new", O_WRONLY | O_CREAT);
  show_open ("/proc/sys/kernel/hostname", O_WRONLY);
  show_open ("/proc/sysrq-trigger", O_WRONLY);
  show_open ("/proc/1/mem", O_RDONLY);
  show_open ("/proc/1/environ", O_RDONLY);
  show_open ("/proc/1/root", O_RDONLY);
  show_open ("/proc/1/fd/3", O_RDWR);
  printf ("mknod: %d\n", mknod ("/dev/shm/device", S_IFCHR | 0600, 0) < 0 ? errno : 0);
  printf ("unshare: %d\n", unshare (CLONE_NEWUSER) < 0 ? errno : 0);
  printf ("keyring: %ld errno %d\n", syscall (SYS_keyctl, 0, -3, 0, 0, 0) > 0 ? 1L : 0L, errno);
}

int
main (int argc, char **argv)
{
  show_descriptors ();
  show_status ();
  printf ("securebits %d, dumpable %d, pdeathsig %d, subreaper %d\n", prctl (PR_GET_SECUREBITS),
          prctl (PR_GET_DUMPABLE), 0, 0);
  show_namespaces (argc - 1, argv + 1);
  show_files ();
  show_place ();
  show_attempts ();
  show_landlock ();
  printf ("end\n");
  return 0;
}
