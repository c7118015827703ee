/* Raw system calls for programs without libc.
 *
 * The launcher, its children and the agent run without libc: glibc caches the
 * thread id across a raw clone3 and takes locks that a fork may leave held.
 * Every wrapper returns the kernel's value: a negative errno on failure.
 */
#ifndef PC_RAW_H
#define PC_RAW_H

#include <asm/unistd.h>
#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 i32;
typedef __s64 i64;
typedef __SIZE_TYPE__ usize;
typedef long word;

#ifndef NULL
#define NULL ((void *) 0)
#endif
#define COUNT(array) (sizeof (array) / sizeof (array)[0])

#if defined(__x86_64__)
static inline word
raw6 (word nr, word a, word b, word c, word d, word e, word f)
{
  word result;
  register word r10 __asm__ ("r10") = d;
  register word r8 __asm__ ("r8") = e;
  register word r9 __asm__ ("r9") = f;
  __asm__ volatile ("syscall"
                    : "=a"(result)
                    : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                    : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
static inline word
raw6 (word nr, word a, word b, word c, word d, word e, word f)
{
  register word x8 __asm__ ("x8") = nr;
  register word x0 __asm__ ("x0") = a;
  register word x1 __asm__ ("x1") = b;
  register word x2 __asm__ ("x2") = c;
  register word x3 __asm__ ("x3") = d;
  register word x4 __asm__ ("x4") = e;
  register word x5 __asm__ ("x5") = f;
  __asm__ volatile ("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}
#else
#error "pycontain supports x86_64 and aarch64"
#endif

#define raw5(nr, a, b, c, d, e) raw6 ((nr), (word) (a), (word) (b), (word) (c), (word) (d), (word) (e), 0)
#define raw4(nr, a, b, c, d) raw5 ((nr), (a), (b), (c), (d), 0)
#define raw3(nr, a, b, c) raw4 ((nr), (a), (b), (c), 0)
#define raw2(nr, a, b) raw3 ((nr), (a), (b), 0)
#define raw1(nr, a) raw2 ((nr), (a), 0)
#define raw0(nr) raw1 ((nr), 0)

#define sys_accept4(fd, address, size, flags) raw4 (__NR_accept4, fd, address, size, flags)
#define sys_capset(header, data) raw2 (__NR_capset, header, data)
#define sys_chdir(path) raw1 (__NR_chdir, path)
#define sys_chroot(path) raw1 (__NR_chroot, path)
#define sys_clone3(args, size) raw2 (__NR_clone3, args, size)
#define sys_close(fd) raw1 (__NR_close, fd)
#define sys_close_range(first, last, flags) raw3 (__NR_close_range, first, last, flags)
#define sys_dup3(from, to, flags) raw3 (__NR_dup3, from, to, flags)
#define sys_epoll_ctl(fd, op, other, event) raw4 (__NR_epoll_ctl, fd, op, other, event)
#define sys_execve(path, argv, env) raw3 (__NR_execve, path, argv, env)
#define sys_fchdir(fd) raw1 (__NR_fchdir, fd)
#define sys_fchmod(fd, mode) raw2 (__NR_fchmod, fd, mode)
#define sys_fchmodat(dir, path, mode) raw3 (__NR_fchmodat, dir, path, mode)
#define sys_fchownat(dir, path, uid, gid, flags) raw5 (__NR_fchownat, dir, path, uid, gid, flags)
#define sys_fcntl(fd, op, value) raw3 (__NR_fcntl, fd, op, value)
#define sys_fgetxattr(fd, name, value, size) raw4 (__NR_fgetxattr, fd, name, value, size)
#define sys_flistxattr(fd, buf, n) raw3 (__NR_flistxattr, fd, buf, n)
#define sys_fsetxattr(fd, name, value, size, flags) raw5 (__NR_fsetxattr, fd, name, value, size, flags)
#define sys_fstatfs(fd, out) raw2 (__NR_fstatfs, fd, out)
#define sys_ftruncate(fd, size) raw2 (__NR_ftruncate, fd, size)
#define sys_getdents64(fd, buf, n) raw3 (__NR_getdents64, fd, buf, n)
#define sys_getpid() raw0 (__NR_getpid)
#define sys_ioctl(fd, op, value) raw3 (__NR_ioctl, fd, op, value)
#define sys_kill(pid, signal) raw2 (__NR_kill, pid, signal)
#define sys_linkat(from_dir, from, to_dir, to, flags) raw5 (__NR_linkat, from_dir, from, to_dir, to, flags)
#define sys_lseek(fd, offset, whence) raw3 (__NR_lseek, fd, offset, whence)
#define sys_mkdirat(dir, path, mode) raw3 (__NR_mkdirat, dir, path, mode)
#define sys_mknodat(dir, path, mode, device) raw4 (__NR_mknodat, dir, path, mode, device)
#define sys_mmap(at, size, protection, flags, fd, offset) raw6 (__NR_mmap, at, size, protection, flags, fd, offset)
#define sys_mount(source, target, type, flags, data) raw5 (__NR_mount, source, target, type, flags, data)
#define sys_munmap(at, size) raw2 (__NR_munmap, at, size)
#define sys_nanosleep(time, left) raw2 (__NR_nanosleep, time, left)
#define sys_openat(dir, path, flags, mode) raw4 (__NR_openat, dir, path, flags, mode)
#define sys_pidfd_send_signal(fd, signal, info, flags) raw4 (__NR_pidfd_send_signal, fd, signal, info, flags)
#define sys_pivot_root(new_root, put_old) raw2 (__NR_pivot_root, new_root, put_old)
#define sys_ppoll(fds, count, timeout, mask, size) raw5 (__NR_ppoll, fds, count, timeout, mask, size)
#define sys_prctl(op, a, b) raw5 (__NR_prctl, op, a, b, 0, 0)
#define sys_prlimit64(pid, resource, new, old) raw4 (__NR_prlimit64, pid, resource, new, old)
#define sys_read(fd, buf, n) raw3 (__NR_read, fd, buf, n)
#define sys_readlinkat(dir, path, buf, n) raw4 (__NR_readlinkat, dir, path, buf, n)
#define sys_recvmsg(fd, message, flags) raw3 (__NR_recvmsg, fd, message, flags)
#define sys_renameat2(from_dir, from, to_dir, to, flags) raw5 (__NR_renameat2, from_dir, from, to_dir, to, flags)
#define sys_rt_sigprocmask(how, set, old, size) raw4 (__NR_rt_sigprocmask, how, set, old, size)
#define sys_sendmsg(fd, message, flags) raw3 (__NR_sendmsg, fd, message, flags)
#define sys_setfsgid(gid) raw1 (__NR_setfsgid, gid)
#define sys_setfsuid(uid) raw1 (__NR_setfsuid, uid)
#define sys_setgroups(count, groups) raw2 (__NR_setgroups, count, groups)
#define sys_setns(fd, type) raw2 (__NR_setns, fd, type)
#define sys_setresgid(real, effective, saved) raw3 (__NR_setresgid, real, effective, saved)
#define sys_setresuid(real, effective, saved) raw3 (__NR_setresuid, real, effective, saved)
#define sys_setsid() raw0 (__NR_setsid)
#define sys_setsockopt(fd, level, name, value, size) raw5 (__NR_setsockopt, fd, level, name, value, size)
#define sys_signalfd4(fd, mask, size, flags) raw4 (__NR_signalfd4, fd, mask, size, flags)
#define sys_socket(domain, type, protocol) raw3 (__NR_socket, domain, type, protocol)
#define sys_socketpair(domain, type, protocol, ends) raw4 (__NR_socketpair, domain, type, protocol, ends)
#define sys_splice(from, from_offset, to, to_offset, n, flags) \
  raw6 (__NR_splice, from, from_offset, to, to_offset, n, flags)
#define sys_statx(dir, path, flags, mask, out) raw5 (__NR_statx, dir, path, flags, mask, out)
#define sys_symlinkat(target, dir, path) raw3 (__NR_symlinkat, target, dir, path)
#define sys_umask(mask) raw1 (__NR_umask, mask)
#define sys_umount2(path, flags) raw2 (__NR_umount2, path, flags)
#define sys_unlinkat(dir, path, flags) raw3 (__NR_unlinkat, dir, path, flags)
#define sys_unshare(flags) raw1 (__NR_unshare, flags)
#define sys_utimensat(dir, path, times, flags) raw4 (__NR_utimensat, dir, path, times, flags)
#define sys_wait4(pid, status, options, usage) raw4 (__NR_wait4, pid, status, options, usage)
#define sys_write(fd, buf, n) raw3 (__NR_write, fd, buf, n)

_Noreturn static inline void
sys_exit (int status)
{
  for (;;)
    raw1 (__NR_exit_group, status);
}

#endif
