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
  __asm__ volatile ("svc 0"
                    : "+r"(x0)
                    : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                    : "memory");
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

#define sys_close(fd) raw1 (__NR_close, fd)
#define sys_read(fd, buf, n) raw3 (__NR_read, fd, buf, n)
#define sys_write(fd, buf, n) raw3 (__NR_write, fd, buf, n)
#define sys_openat(dir, path, flags, mode) raw4 (__NR_openat, dir, path, flags, mode)
#define sys_mkdirat(dir, path, mode) raw3 (__NR_mkdirat, dir, path, mode)
#define sys_prctl(op, a, b) raw5 (__NR_prctl, op, a, b, 0, 0)
#define sys_dup3(from, to, flags) raw3 (__NR_dup3, from, to, flags)
#define sys_close_range(first, last, flags) raw3 (__NR_close_range, first, last, flags)

_Noreturn static inline void
sys_exit (int status)
{
  for (;;)
    raw1 (__NR_exit_group, status);
}

#endif
