/* Fuzz target: whatever check.c lets through is walked as launcher and agent walk it.
 *
 * The buffer ends where its allocation ends and stands behind a poisoned request
 * header, so that a byte read before or after it is seen by AddressSanitizer.  What
 * memory alone does not show (a string count that is wrong, an index beyond the fds)
 * is asserted.
 */
#include "plan.h"
#include "protocol.h"
#include "target.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FD_SLOTS 1024 /* struct pc_fds, wire.h */

void __asan_poison_memory_region (const volatile void *address, size_t size);
void __asan_unpoison_memory_region (const volatile void *address, size_t size);

enum decoder
{
  DECODER_PLAN,
  DECODER_SECURITY,
  DECODER_EXEC,
};

struct fuzz_counts fuzz_counts;
/* Plans twice as often as the others: they hold most. */
const uint8_t fuzz_order[4] = { DECODER_PLAN, DECODER_PLAN, DECODER_SECURITY, DECODER_EXEC };
static volatile u64 sink;

#define REQUIRE(condition)                                                                         \
  do                                                                                               \
    if (!(condition))                                                                              \
      broken (__LINE__, #condition);                                                               \
  while (0)

_Noreturn static void
broken (int line, const char *what)
{
  fprintf (stderr, "decoders.c:%d: accepted, but not: %s\n", line, what);
  abort ();
}

static void
print_counts (void)
{
  fprintf (stderr, "decoders: executions=%llu plan=%llu security=%llu exec=%llu\n",
           (unsigned long long) fuzz_counts.executions,
           (unsigned long long) fuzz_counts.accepted[DECODER_PLAN],
           (unsigned long long) fuzz_counts.accepted[DECODER_SECURITY],
           (unsigned long long) fuzz_counts.accepted[DECODER_EXEC]);
}

/* As wire.c has it: the libc's would be checked by its interceptor, not byte by byte. */
static usize
length_of (const char *text)
{
  usize n = 0;
  while (text[n] != '\0')
    n++;
  return n;
}

static void
read_bytes (const void *from, usize size)
{
  const u8 *bytes = from;
  for (usize i = 0; i < size; i++)
    sink += bytes[i];
}

static void
walk_text (const void *base, struct pc_ref ref)
{
  REQUIRE (length_of (pc_at (base, ref)) == ref.size);
}

static void
walk_rlimits (const void *base, struct pc_ref ref)
{
  const struct pc_rlimit *limits = pc_at (base, ref);
  REQUIRE (ref.size % sizeof *limits == 0);
  for (u32 i = 0; i < ref.size / sizeof *limits; i++)
    sink += limits[i].resource + limits[i].soft + limits[i].hard;
}

/* struct sock_filter */
struct instruction
{
  u16 code;
  u8 jump_true;
  u8 jump_false;
  u32 k;
};

static void
walk_filter (const void *base, struct pc_ref ref)
{
  const struct instruction *filter = pc_at (base, ref);
  REQUIRE (ref.size % sizeof *filter == 0);
  for (u32 i = 0; i < ref.size / sizeof *filter; i++)
    sink += filter[i].code + filter[i].jump_true + filter[i].jump_false + filter[i].k;
}

static void
walk_security (const struct pc_security *security, usize size)
{
  REQUIRE (security->size == size);
  sink += security->flags + security->capabilities + security->securebits + security->landlock_abi
          + security->landlock_fs + security->landlock_scoped + security->landlock_root
          + security->landlock_dev;
  walk_rlimits (security, security->rlimits);
  walk_filter (security, security->seccomp);
  walk_filter (security, security->inherited);
}

/* unpack_strings (): the list ends where its reference ends. */
static void
walk_strings (const struct pc_exec *exec, struct pc_ref ref, u32 count)
{
  const char *start = pc_at (exec, ref);
  const char *at = start;
  for (u32 i = 0; i < count; i++)
    at += length_of (at) + 1;
  REQUIRE (count == 0 || (usize) (at - start) == ref.size);
}

/* search_and_execute (): PATH is cut at its colons. */
static void
walk_search (const char *search)
{
  for (const char *at = search;;)
    {
      usize n = 0;
      while (at[n] != '\0' && at[n] != ':')
        n++;
      if (at[n] == '\0')
        return;
      at += n + 1;
    }
}

static void
walk_exec (const struct pc_exec *exec, usize size)
{
  REQUIRE (exec->size == size);
  sink += exec->flags + exec->id + exec->tasks_count + exec->uid + exec->gid + exec->rows
          + exec->columns + exec->umask;
  REQUIRE (exec->argc > 0);
  walk_strings (exec, exec->argv, exec->argc);
  walk_strings (exec, exec->env, exec->envc);
  walk_text (exec, exec->workdir);
  walk_text (exec, exec->search);
  walk_search (pc_at (exec, exec->search));
  const u32 *groups = pc_at (exec, exec->groups);
  REQUIRE (exec->groups.size % sizeof *groups == 0);
  for (u32 i = 0; i < exec->groups.size / sizeof *groups; i++)
    sink += groups[i];
  walk_rlimits (exec, exec->rlimits);
}

static void
walk_source (const void *base, const struct pc_source *source)
{
  sink += source->flags + source->device + source->inode + source->attributes;
  REQUIRE (source->fd == PC_NO_FD || source->fd < PC_MAX_FDS);
  walk_text (base, source->path);
}

/* pc_new_filesystem (): options are cut at their commas, each of them at its "=". */
static void
walk_options (const char *options, usize size)
{
  for (usize at = 0; at < size;)
    {
      usize n = 0;
      while (at + n < size && options[at + n] != ',')
        n++;
      for (usize i = 0; i < n && options[at + i] != '\0' && options[at + i] != '=';)
        i++;
      at += n + 1;
    }
}

static void
walk_op (const struct pc_plan *plan, const struct pc_op *op)
{
  const struct pc_source *sources = pc_at (plan, plan->sources);
  const char *data = pc_at (plan, op->data);

  sink += op->flags + op->mode + op->attributes;
  REQUIRE (op->kind > 0 && op->kind < PC_OP_KIND_COUNT);
  walk_text (plan, op->target);
  read_bytes (data, op->data.size);
  REQUIRE (data[op->data.size] == '\0');
  for (u32 i = 0; i < op->count; i++)
    sink += sources[op->source + i].fd + sources[op->source + i].attributes;
  usize n = length_of (data);
  if (op->kind == PC_OP_FILESYSTEM && n < op->data.size)
    walk_options (data + n + 1, op->data.size - n - 1);
  if (op->kind == PC_OP_UPPER)
    walk_options (data, op->data.size);
}

static void
walk_fd (const int *fds, u32 index)
{
  if (index != PC_NO_FD)
    sink += (u64) fds[index];
}

static void
walk_fds (const struct pc_plan *plan)
{
  int *fds = calloc (FD_SLOTS, sizeof *fds);
  REQUIRE (fds != NULL);
  REQUIRE (plan->control_fd != PC_NO_FD);
  walk_fd (fds, plan->control_fd);
  walk_fd (fds, plan->exit_fd);
  walk_fd (fds, plan->cgroup_fd);
  walk_fd (fds, plan->store_fd);
  for (u32 i = 0; i < plan->tasks_count; i++)
    walk_fd (fds, plan->tasks_fd + i);
  const struct pc_source *sources = pc_at (plan, plan->sources);
  for (u32 i = 0; i < plan->sources.size / sizeof *sources; i++)
    walk_fd (fds, sources[i].fd);
  const struct pc_join *joins = pc_at (plan, plan->joins);
  for (u32 i = 0; i < plan->joins.size / sizeof *joins; i++)
    {
      walk_fd (fds, joins[i].fd);
      sink += joins[i].type;
    }
  free (fds);
}

static void
walk_plan (const struct pc_plan *plan, usize size)
{
  REQUIRE (plan->size == size);
  sink += plan->flags + plan->namespaces;
  walk_fds (plan);
  walk_text (plan, plan->uid_map);
  walk_text (plan, plan->gid_map);
  walk_text (plan, plan->hostname);
  walk_source (plan, &plan->store);
  const struct pc_source *sources = pc_at (plan, plan->sources);
  for (u32 i = 0; i < plan->sources.size / sizeof *sources; i++)
    walk_source (plan, &sources[i]);
  const struct pc_op *ops = pc_at (plan, plan->ops);
  for (u32 i = 0; i < plan->ops.size / sizeof *ops; i++)
    walk_op (plan, &ops[i]);
  walk_security (pc_at (plan, plan->security), plan->security.size);
  if (plan->flags & PC_PLAN_COMMAND_IS_INIT)
    walk_exec (pc_at (plan, plan->command), plan->command.size);
}

/* Behind a header of 24 bytes in a buffer aligned to 16, as it is received: aligned to 8 and no more. */
static u8 *
place (const uint8_t *data, size_t size)
{
  _Static_assert (sizeof (struct pc_request) % 8 == 0, "what is poisoned comes in units of 8");
  u8 *block = malloc (sizeof (struct pc_request) + size);
  REQUIRE (block != NULL);
  if (size > 0)
    memcpy (block + sizeof (struct pc_request), data, size);
  __asan_poison_memory_region (block, sizeof (struct pc_request));
  return block;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  if (fuzz_counts.executions++ == 0)
    atexit (print_counts);
  u8 *block = place (data, size);
  const void *buffer = block + sizeof (struct pc_request);
  if (pc_plan_check (buffer, size) == 0)
    {
      fuzz_counts.accepted[DECODER_PLAN]++;
      walk_plan (buffer, size);
    }
  if (pc_security_check (buffer, size) == 0)
    {
      fuzz_counts.accepted[DECODER_SECURITY]++;
      walk_security (buffer, size);
    }
  if (pc_exec_check (buffer, size) == 0)
    {
      fuzz_counts.accepted[DECODER_EXEC]++;
      walk_exec (buffer, size);
    }
  __asan_unpoison_memory_region (block, sizeof (struct pc_request));
  free (block);
  return 0;
}
