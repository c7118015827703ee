/* Numbers of the kernel's ABI that are missing from its exported headers, or cannot be included beside a libc's.
   They have a libc's names and a trailing underscore. */
#ifndef PC_ABI_H
#define PC_ABI_H

#define AT_FDCWD_ (-100)
#define AT_SYMLINK_NOFOLLOW_ 0x100
#define AT_REMOVEDIR_ 0x200
#define AT_EMPTY_PATH_ 0x1000
#define AT_RECURSIVE_ 0x8000

#define CLOSE_RANGE_CLOEXEC_ 4
#define NR_FCHMODAT2 452 /* of Linux 6.6 */
#define DT_DIR_ 4
#define MNT_DETACH_ 2
#define F_SETPIPE_SZ_ 1031
#define F_GET_SEALS_ 1034
#define F_SEAL_SHRINK_ 0x2
#define F_SEAL_WRITE_ 0x8
#define SEEK_SET_ 0
#define SEEK_END_ 2

#define PROT_READ_ 1
#define PROT_WRITE_ 2
#define MAP_SHARED_ 0x1
#define MAP_PRIVATE_ 0x2
#define MAP_ANONYMOUS_ 0x20
#define MAP_NORESERVE_ 0x4000
#define MREMAP_MAYMOVE_ 1

#define SIGINT_ 2
#define SIGKILL_ 9
#define SIGCHLD_ 17
#define SIGSTOP_ 19
#define SIG_SETMASK_ 2
#define SIGNAL_BIT(number) (1ull << ((number) - 1))
#define ALL_SIGNALS (~0ull)
#define SFD_CLOEXEC_ 0x80000
#define SFD_NONBLOCK_ 0x800
#define WNOHANG_ 1
#define SIGNALED(status) (((status) & 0x7f) != 0)

#define RLIMIT_CORE_ 4
#define RLIMIT_MEMLOCK_ 8
#define RLIMIT_SIGPENDING_ 11
#define RLIMIT_MSGQUEUE_ 12

#define AF_UNIX_ 1
#define AF_INET_ 2
#define AF_INET6_ 10
#define SOCK_STREAM_ 1
#define SOCK_DGRAM_ 2
#define SOCK_SEQPACKET_ 5
#define SOCK_NONBLOCK_ 0x800
#define SOCK_CLOEXEC_ 0x80000
#define SOL_SOCKET_ 1
#define SCM_RIGHTS_ 1
#define SHUT_WR_ 1
#define MSG_PEEK_ 0x2
#define MSG_CTRUNC_ 0x8
#define MSG_TRUNC_ 0x20
#define MSG_DONTWAIT_ 0x40
#define MSG_NOSIGNAL_ 0x4000
#define MSG_CMSG_CLOEXEC_ 0x40000000
#define SPLICE_F_MOVE_ 1
#define SPLICE_F_NONBLOCK_ 2

#define IFF_UP_ 1
#define SIOCSIFFLAGS_ 0x8914
#define TIOCSCTTY_ 0x540e
#define TIOCSWINSZ_ 0x5414
#define TIOCGPTPEER_ 0x5441
#define TIOCSPTLCK_ 0x40045431

#endif
