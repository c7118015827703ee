/* A driver without libFuzzer: seeded mutations of a corpus; an input that is accepted or reaches code that nothing
 * reached before is mutated further.
 *
 *   standalone [-seconds=S] [-runs=N] [-seed=X] [-max_len=N] [-artifact_prefix=P] FILE|DIRECTORY...
 *
 * Without -seconds and -runs the files are executed as they are: how a finding is replayed.
 */
#include "mutate.h"
#include "raw.h"
#include "target.h"

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

/* By kind, so that what is easily accepted does not push out the rest. */
static struct pool
{
  struct input inputs[POOL_SIZE];
  usize count;
  usize seeds; /* the first came from files and stay */
} pools[FUZZ_KINDS];

/* Which pairs of places were passed one after the other; gcc calls this at each branch of the target. */
static u8 passed[1u << 16];
static u32 reached;
extern const char __executable_start[];

void
__sanitizer_cov_trace_pc (void)
{
  static u32 before;
  u32 here = (u32) ((const char *) __builtin_return_address (0) - __executable_start) * 2654435761u >> 16;
  u8 *pair = &passed[(here ^ before) & 0xffff];
  reached += *pair == 0;
  *pair = 1;
  before = here >> 1;
}

static usize files;
static usize files_accepted;
static struct input current;
static u8 work[LARGEST];

static struct
{
  double seconds;
  u64 runs;
  usize max_length;
  const char *artifacts;
} options = { .max_length = 16 * 1024, .artifacts = "./" };

/* Called in the middle of a report; the allocator may be what is broken. */
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
             (size_t) current.size, (unsigned long long) fuzz_counts.executions);
}

/* The first kind that accepted, or FUZZ_KINDS. */
static int
execute (u8 *data, usize size)
{
  struct fuzz_counts before = fuzz_counts;
  int which = 0;
  current = (struct input){ data, size };
  LLVMFuzzerTestOneInput (data, size);
  while (which < FUZZ_KINDS && fuzz_counts.accepted[which] == before.accepted[which])
    which++;
  return which;
}

static void
adopt (struct pool *pool, const u8 *data, usize size)
{
  if (pool->count == POOL_SIZE && pool->seeds == POOL_SIZE)
    return;
  usize slot = pool->count < POOL_SIZE ? pool->count++ : pool->seeds + mutate_below (POOL_SIZE - pool->seeds);
  u8 *copy = malloc (size + 1);
  if (copy == NULL)
    abort ();
  memcpy (copy, data, size);
  free (pool->inputs[slot].data);
  pool->inputs[slot] = (struct input){ copy, size };
}

static const struct input *
choose (void)
{
  const struct pool *pool;
  do
    pool = &pools[fuzz_order[mutate_below (sizeof fuzz_order)]];
  while (pool->count == 0);
  return &pool->inputs[mutate_below (pool->count)];
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
      const struct input *other = choose ();
      usize size = from->size < options.max_length ? from->size : options.max_length;
      memcpy (work, from->data, size);
      size = mutate (work, size, options.max_length, other->data, other->size);
      u32 before = reached;
      int which = execute (work, size);
      if (reached > before)
        adopt (&pools[which < FUZZ_KINDS ? which : fuzz_order[0]], work, size);
      else if (which < FUZZ_KINDS && mutate_below (ADOPT_ONE_IN) == 0)
        adopt (&pools[which], work, size);
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
  struct pool *pool = &pools[which < FUZZ_KINDS ? which : fuzz_order[0]];
  adopt (pool, work, (usize) got);
  pool->seeds = pool->count;
  files++;
  files_accepted += which < FUZZ_KINDS;
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
    mutate_seed (strtoull (argument + 6, NULL, 0));
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
  fprintf (stderr, "coverage: pairs=%u\n", reached);
  return 0;
}
