/* A driver for decoders.c where libFuzzer is absent: seeded mutations of a corpus, no feedback but acceptance.
 *
 *   standalone [-seconds=S] [-runs=N] [-seed=X] [-max_len=N] [-artifact_prefix=P] FILE|DIRECTORY...
 *
 * Without -seconds and -runs the files are executed as they are: how a finding is replayed.
 */
#include "decoders.h"
#include "plan.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define POOL_SIZE 512
#define LARGEST (64u * 1024)
#define CLOCK_EVERY 256
#define ADOPT_ONE_IN 64

void __sanitizer_set_death_callback (void (*callback) (void));

struct input
{
  u8 *data;
  usize size;
};

/* By decoder, so that what is easily accepted does not push out the rest. */
static struct pool
{
  struct input inputs[POOL_SIZE];
  usize count;
  usize seeds; /* the first came from files and stay */
} pools[DECODER_COUNT];

static usize files;
static usize files_accepted;
static struct input current;
static u8 work[LARGEST];
static usize work_size;
static u64 state = 1;

static struct
{
  double seconds;
  u64 runs;
  usize max_length;
  const char *artifacts;
} options = { .max_length = 16 * 1024, .artifacts = "./" };

static u64
any (void)
{
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state * 0x2545f4914f6cdd1dull;
}

static usize
below (usize limit)
{
  return limit == 0 ? 0 : (usize) ((any () >> 11) % limit);
}

/* In the middle of a report: system calls alone. */
static void
keep_finding (void)
{
  char path[4096];
  u64 hash = 0xcbf29ce484222325ull;
  for (usize i = 0; i < current.size; i++)
    hash = (hash ^ current.data[i]) * 0x100000001b3ull;
  snprintf (path, sizeof path, "%scrash-%016llx", options.artifacts, (unsigned long long) hash);
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0 || write (fd, current.data, current.size) != (ssize_t) current.size)
    fprintf (stderr, "standalone: cannot write %s\n", path);
  else
    fprintf (stderr, "standalone: the input is in %s (%zu bytes), after %llu executions\n", path,
             (size_t) current.size, (unsigned long long) decoder_counts.executions);
}

/* The decoder that accepted, or DECODER_COUNT. */
static int
execute (u8 *data, usize size)
{
  struct decoder_counts before = decoder_counts;
  int which = 0;
  current = (struct input){ data, size };
  LLVMFuzzerTestOneInput (data, size);
  while (which < DECODER_COUNT && decoder_counts.accepted[which] == before.accepted[which])
    which++;
  return which;
}

static void
adopt (struct pool *pool, const u8 *data, usize size)
{
  if (pool->count == POOL_SIZE && pool->seeds == POOL_SIZE)
    return;
  usize slot = pool->count < POOL_SIZE ? pool->count++ : pool->seeds + below (POOL_SIZE - pool->seeds);
  u8 *copy = malloc (size + 1);
  if (copy == NULL)
    abort ();
  memcpy (copy, data, size);
  free (pool->inputs[slot].data);
  pool->inputs[slot] = (struct input){ copy, size };
}

/* Plans twice as often as the others: they hold most. */
static const struct input *
choose (void)
{
  static const int order[] = { DECODER_PLAN, DECODER_PLAN, DECODER_SECURITY, DECODER_EXEC };
  const struct pool *pool;
  do
    pool = &pools[order[below (4)]];
  while (pool->count == 0);
  return &pool->inputs[below (pool->count)];
}

static u32
word_at (usize at)
{
  u32 value;
  memcpy (&value, work + at, sizeof value);
  return value;
}

static void
set_word (usize at, u32 value)
{
  memcpy (work + at, &value, sizeof value);
}

/* A number at which something ends. */
static u32
edge (void)
{
  static const u32 values[] = { 0,   1,   2,    3,    4,     7,      8,          15,         16,
                                24,  40,  64,   127,  128,   199,    200,        201,        255,
                                256, 512, 4095, 4096, 65535, 65536,  0x7fffffff, 0x80000000, 0xfffffff8,
                                0xfffffffe, 0xffffffff };
  u32 value = values[below (sizeof values / sizeof *values)];
  if (below (3) == 0)
    value = (u32) work_size + (u32) below (17) - 8;
  return value;
}

static usize
any_word (void)
{
  return below (work_size / 4) * 4;
}

static void
flip_bit (void)
{
  work[below (work_size)] ^= (u8) (1u << below (8));
}

static void
set_byte (void)
{
  work[below (work_size)] = (u8) any ();
}

static void
set_edge (void)
{
  usize at = any_word ();
  if (at + 4 <= work_size)
    set_word (at, edge ());
}

static void
nudge (void)
{
  usize at = any_word ();
  if (at + 4 <= work_size)
    set_word (at, word_at (at) + (u32) below (33) - 16);
}

/* Take two words for a reference and lead it to the end of the buffer, or a little past it. */
static void
lead_to_the_end (void)
{
  static const i32 steps[] = { 0, 0, 1, -1, 2, -2, 4, -4, 8, -8, 16, 24, 40 };
  usize at = any_word ();
  if (at + 8 > work_size)
    return;
  u32 slack = (u32) steps[below (sizeof steps / sizeof *steps)];
  if (below (2) == 0)
    set_word (at, (u32) work_size - word_at (at + 4) + slack);
  else
    set_word (at + 4, (u32) work_size - word_at (at) + slack);
}

/* Take two words for a reference, and make it one of what may stand in the buffer. */
static void
make_reference (void)
{
  static const u32 units[] = { 1, 4, 8, 16, 24, 40, 48 };
  usize at = any_word ();
  if (at + 8 > work_size)
    return;
  u32 offset = (u32) below (work_size + 1);
  if (below (4) != 0)
    offset &= ~7u;
  u32 unit = units[below (sizeof units / sizeof *units)];
  u32 room = (u32) work_size - offset;
  u32 size = (u32) below (room / unit + 2) * unit;
  set_word (at, offset);
  set_word (at + 4, below (8) == 0 ? 0u - offset + (u32) below (16) : size);
}

static void
cut (void)
{
  usize less = below (2) == 0 ? below (work_size) : below (work_size < 40 ? work_size : 40);
  work_size -= less;
}

static void
extend (void)
{
  usize more = below (64) + 1;
  if (work_size + more > options.max_length)
    return;
  for (usize i = 0; i < more; i++)
    work[work_size + i] = below (2) == 0 ? 0 : (u8) any ();
  work_size += more;
}

static void
copy_block (void)
{
  usize from = below (work_size), to = below (work_size);
  usize most = work_size - (from > to ? from : to);
  memmove (work + to, work + from, below (most) + 1);
}

static void
splice (void)
{
  const struct input *other = choose ();
  usize at = below (work_size) & ~(usize) 7;
  usize from = below (other->size) & ~(usize) 7;
  usize count = below (other->size - from + 1);
  if (at + count > options.max_length)
    count = options.max_length > at ? options.max_length - at : 0;
  memcpy (work + at, other->data + from, count);
  if (at + count > work_size || below (2) == 0)
    work_size = at + count;
}

static void
set_size (usize at, usize size)
{
  if (at % 4 == 0 && at <= work_size && work_size - at >= 12)
    set_word (at + offsetof (struct pc_plan, size), (u32) size);
}

/* A wrong size is refused at once: make most inputs, and the buffers inside of them, get further. */
static void
mend_sizes (void)
{
  if (below (8) == 0)
    return;
  set_size (0, work_size);
  if (work_size < sizeof (struct pc_plan) || word_at (0) != PC_PLAN_MAGIC || below (8) == 0)
    return;
  static const usize inner[] = { offsetof (struct pc_plan, security), offsetof (struct pc_plan, command) };
  for (usize i = 0; i < 2; i++)
    if (word_at (inner[i] + 4) >= 12)
      set_size (word_at (inner[i]), word_at (inner[i] + 4));
}

static void
mutate (void)
{
  static void (*const all[]) (void)
      = { flip_bit,        set_byte, set_edge,   set_edge,       nudge, nudge, lead_to_the_end,
          lead_to_the_end, cut,      copy_block, make_reference, extend, splice };
  for (usize n = below (2) == 0 ? 1 : below (4) + 1; n > 0; n--)
    if (work_size > 0)
      all[below (sizeof all / sizeof *all)]();
  mend_sizes ();
}

static double
now (void)
{
  struct timespec time;
  clock_gettime (CLOCK_MONOTONIC, &time);
  return (double) time.tv_sec + (double) time.tv_nsec / 1e9;
}

static void
fuzz (void)
{
  double end = now () + options.seconds;
  for (u64 i = 0; options.runs == 0 || i < options.runs; i++)
    {
      if (options.seconds > 0 && i % CLOCK_EVERY == 0 && now () > end)
        return;
      const struct input *from = choose ();
      work_size = from->size < options.max_length ? from->size : options.max_length;
      memcpy (work, from->data, work_size);
      mutate ();
      int which = execute (work, work_size);
      if (which < DECODER_COUNT && below (ADOPT_ONE_IN) == 0)
        adopt (&pools[which], work, work_size);
    }
}

static void
load_file (const char *path)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  ssize_t got = fd < 0 ? -1 : read (fd, work, sizeof work);
  if (got < 0)
    {
      perror (path);
      exit (2);
    }
  close (fd);
  int which = execute (work, (usize) got);
  struct pool *pool = &pools[which < DECODER_COUNT ? which : DECODER_PLAN];
  adopt (pool, work, (usize) got);
  pool->seeds = pool->count;
  files++;
  files_accepted += which < DECODER_COUNT;
}

static int
compare_names (const struct dirent **a, const struct dirent **b)
{
  return strcmp ((*a)->d_name, (*b)->d_name);
}

/* In the order of names, so that a seed gives the same run everywhere. */
static void
load (const char *path)
{
  struct stat seen;
  struct dirent **names;
  if (stat (path, &seen) < 0 || !S_ISDIR (seen.st_mode))
    {
      load_file (path);
      return;
    }
  int count = scandir (path, &names, NULL, compare_names);
  for (int i = 0; i < count; i++)
    {
      char file[4096];
      snprintf (file, sizeof file, "%s/%s", path, names[i]->d_name);
      if (names[i]->d_name[0] != '.')
        load_file (file);
      free (names[i]);
    }
  if (count >= 0)
    free (names);
}

static int
take_option (const char *argument)
{
  if (strncmp (argument, "-seconds=", 9) == 0)
    options.seconds = strtod (argument + 9, NULL);
  else if (strncmp (argument, "-runs=", 6) == 0)
    options.runs = strtoull (argument + 6, NULL, 0);
  else if (strncmp (argument, "-seed=", 6) == 0)
    state = strtoull (argument + 6, NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
  else if (strncmp (argument, "-max_len=", 9) == 0)
    options.max_length = strtoull (argument + 9, NULL, 0);
  else if (strncmp (argument, "-artifact_prefix=", 17) == 0)
    options.artifacts = argument + 17;
  else
    return 0;
  return 1;
}

int
main (int argc, char **argv)
{
  __sanitizer_set_death_callback (keep_finding);
  for (int i = 1; i < argc; i++)
    if (argv[i][0] == '-' && !take_option (argv[i]))
      {
        fprintf (stderr, "standalone: unknown option %s\n", argv[i]);
        return 2;
      }
  if (options.max_length > LARGEST)
    options.max_length = LARGEST;
  for (int i = 1; i < argc; i++)
    if (argv[i][0] != '-')
      load (argv[i]);
  if (files == 0)
    {
      fprintf (stderr, "standalone: no corpus\n");
      return 2;
    }
  fprintf (stderr, "corpus: files=%zu accepted=%zu\n", (size_t) files, (size_t) files_accepted);
  if (options.seconds > 0 || options.runs > 0)
    fuzz ();
  return 0;
}
