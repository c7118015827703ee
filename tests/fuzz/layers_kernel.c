/* The kernel as the code under test sees it: an input for a stream, an output in memory, and for all else the
 * real one, once it is sure that a call names one part of a path and memory that is there.
 */
#include "layers.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define OWNED_MOST 64
#define LARGE (64ull << 20)
#define EMPTY_PATH 0x1000
#define RESOLVE_IN_ROOT_ 0x10

void *__asan_region_is_poisoned (void *begin, size_t size);

u8 *kernel_output;
usize kernel_output_size;

static const u8 *stream;
static usize stream_size;
static u32 stream_split;
static u32 reads;
static void *owned[OWNED_MOST];
static u32 owned_count;
static int lowest_fd;

void
kernel_stream (const u8 *data, usize size, u32 split)
{
  stream = data;
  stream_size = size;
  stream_split = split;
  reads = 0;
}

static int
free_fd (void)
{
  int fd = dup (2);
  close (fd);
  return fd;
}

void
kernel_begin (void)
{
  lowest_fd = free_fd ();
  kernel_output_size = 0;
}

void
kernel_end (void)
{
  while (owned_count > 0)
    free (owned[--owned_count]);
  REQUIRE (free_fd () == lowest_fd);
}

static word
read_stream (u8 *to, usize size)
{
  usize most = stream_split > 0 && stream_split < size ? stream_split : size;
  REQUIRE (__asan_region_is_poisoned (to, size) == NULL);
  if (stream_split > 0 && ++reads % 4 == 0)
    return -EINTR;
  if (most > stream_size)
    most = stream_size;
  memcpy (to, stream, most);
  stream += most;
  stream_size -= most;
  return (word) most;
}

static word
write_output (const u8 *data, usize size)
{
  if (kernel_output == NULL)
    kernel_output = malloc (OUTPUT_MOST);
  if (size > OUTPUT_MOST - kernel_output_size)
    return -ENOSPC;
  memcpy (kernel_output + kernel_output_size, data, size);
  kernel_output_size += size;
  return (word) size;
}

static word
map (usize size)
{
  if (size >= LARGE)
    return kernel6 (__NR_mmap, 0, (word) size, 3, 0x4022, -1, 0);
  void *memory = calloc (1, size);
  REQUIRE (memory != NULL && owned_count < OWNED_MOST);
  owned[owned_count++] = memory;
  return (word) memory;
}

static word
remap (void *old, usize before, usize size)
{
  u32 at = 0;
  while (at < owned_count && owned[at] != old)
    at++;
  REQUIRE (at < owned_count && size >= before);
  owned[at] = realloc (old, size);
  REQUIRE (owned[at] != NULL);
  memset ((u8 *) owned[at] + before, 0, size - before);
  return (word) owned[at];
}

/* One part: no path whose links the kernel would follow on its way. */
static void
check_part (word name, int may_be_empty)
{
  const char *text = (const char *) name;
  REQUIRE (strchr (text, '/') == NULL && strcmp (text, "..") != 0);
  REQUIRE (may_be_empty || text[0] != '\0');
}

static void
check_memory (word begin, word size)
{
  REQUIRE (size == 0 || __asan_region_is_poisoned ((void *) begin, (size_t) size) == NULL);
}

static void
check_call (word nr, word a, word b, word c, word d, word e)
{
  switch (nr)
    {
    case __NR_openat2:
      REQUIRE ((((const u64 *) c)[2] & RESOLVE_IN_ROOT_) != 0);
      break;
    case __NR_openat:
    case __NR_mkdirat:
    case __NR_mknodat:
    case __NR_unlinkat:
    case __NR_fchmodat:
      check_part (b, 0);
      break;
    case __NR_symlinkat:
      check_part (c, 0);
      break;
    case __NR_linkat:
    case __NR_renameat2:
      check_part (b, 0);
      check_part (d, 0);
      break;
    case __NR_statx:
      check_part (b, (c & EMPTY_PATH) != 0);
      break;
    case __NR_fchownat:
      check_part (b, (e & EMPTY_PATH) != 0);
      break;
    case __NR_utimensat:
      if (b != 0)
        check_part (b, 0);
      break;
    case __NR_lsetxattr:
      check_part (a, 0);
      check_memory (c, d);
      break;
    case __NR_fsetxattr:
    case __NR_fgetxattr:
      check_memory (c, d);
      break;
    case __NR_readlinkat:
      check_part (b, 0);
      check_memory (c, d);
      break;
    case __NR_read:
    case __NR_write:
    case __NR_getdents64:
    case __NR_flistxattr:
      check_memory (b, c);
      break;
    case __NR_close:
    case __NR_fchdir:
    case __NR_fchmod:
    case __NR_fremovexattr:
    case __NR_ftruncate:
    case __NR_lseek:
      break;
    default:
      fprintf (stderr, "layers: call %ld\n", nr);
      abort ();
    }
}

word
raw6 (word nr, word a, word b, word c, word d, word e, word f)
{
  if (nr == __NR_mmap)
    return map ((usize) b);
  if (nr == __NR_mremap)
    return remap ((void *) a, (usize) b, (usize) c);
  if (nr == __NR_read && a == STREAM_FD)
    return read_stream ((u8 *) b, (usize) c);
  check_call (nr, a, b, c, d, e);
  if (nr == __NR_write && a == OUTPUT_FD)
    return write_output ((const u8 *) b, (usize) c);
  return kernel6 (nr, a, b, c, d, e, f);
}
