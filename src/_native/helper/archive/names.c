/* Sorted directory listings, independent of the file system's order. */
#include "names.h"
#include "wire.h"

#include <linux/errno.h>

u8 *
pc_reserve (usize size)
{
  word map = sys_mmap (0, size, PROT_READ_ | PROT_WRITE_, MAP_PRIVATE_ | MAP_ANONYMOUS_ | MAP_NORESERVE_, -1, 0);
  return map < 0 && map > -4096 ? NULL : (u8 *) map;
}

void *
pc_take (struct pc_arena *arena, usize size)
{
  size = (size + 7) / 8 * 8;
  if (size > PC_ARENA_MOST - arena->used)
    return NULL;
  void *taken = arena->memory + arena->used;
  arena->used += size;
  return taken;
}

int
pc_compare_names (const char *a, const char *b)
{
  while (*a != '\0' && *a == *b)
    {
      a++;
      b++;
    }
  return (int) (u8) *a - (int) (u8) *b;
}

/* Heap sort, which needs neither recursion nor memory. */
static void
sort_names (char **names, usize count)
{
  for (usize built = count / 2, end = count; end > 1;)
    {
      if (built > 0)
        built--;
      else
        {
          end--;
          char *last = names[end];
          names[end] = names[0];
          names[0] = last;
        }
      for (usize root = built;;)
        {
          usize child = 2 * root + 1;
          if (child >= end)
            break;
          if (child + 1 < end && pc_compare_names (names[child], names[child + 1]) < 0)
            child++;
          if (pc_compare_names (names[root], names[child]) >= 0)
            break;
          char *held = names[root];
          names[root] = names[child];
          names[child] = held;
          root = child;
        }
    }
}

char **
pc_list_names (struct pc_arena *arena, int fd, usize *count)
{
  static char listing[32768] __attribute__ ((aligned (8)));
  usize begin = arena->used;
  word got;

  *count = 0;
  while ((got = sys_getdents64 (fd, listing, sizeof listing)) > 0)
    for (word at = 0; at < got;)
      {
        struct pc_entry *entry = (struct pc_entry *) (void *) (listing + at);
        at += entry->size;
        if (pc_streq (entry->name, ".") || pc_streq (entry->name, ".."))
          continue;
        usize n = pc_strlen (entry->name) + 1;
        char *name = pc_take (arena, n);
        if (name == NULL)
          return NULL;
        memcpy (name, entry->name, n);
        ++*count;
      }
  usize end = arena->used;
  char **names = got < 0 ? NULL : pc_take (arena, (*count + 1) * sizeof *names);
  if (names == NULL)
    return NULL;
  usize i = 0;
  for (usize at = begin; at < end; i++)
    {
      names[i] = (char *) arena->memory + at;
      at += (pc_strlen (names[i]) + 1 + 7) / 8 * 8;
    }
  sort_names (names, *count);
  return names;
}

int
pc_starts_with (const char *text, const char *prefix)
{
  usize n = pc_strlen (prefix);
  for (usize i = 0; i < n; i++)
    if (text[i] != prefix[i])
      return 0;
  return 1;
}

int
pc_attribute_is_content (const char *name)
{
  if (pc_starts_with (name, "user."))
    return !pc_starts_with (name, "user.overlay.");
  return pc_streq (name, "security.capability") || pc_streq (name, "system.posix_acl_access");
}
