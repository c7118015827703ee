/* Records, the answers of launcher and agent. */
#include "wire.h"

int
pc_send_record (int socket, const struct pc_record *record, int fd)
{
  return pc_send (socket, record, sizeof *record, &fd, fd >= 0 ? 1 : 0, 0);
}

int
pc_failed (struct pc_record *record, u32 step, word error, i32 op)
{
  record->kind = PC_RECORD_FAILED;
  record->step = step;
  record->error = (i32) -error;
  record->op = op;
  return -1;
}

void
pc_exited_record (struct pc_record *record, i32 status, const struct pc_kernel_usage *usage)
{
  memset (record, 0, sizeof *record);
  record->kind = PC_RECORD_EXITED;
  record->value = status;
  record->cpu_user = (u64) (usage->user_seconds * 1000000 + usage->user_micros);
  record->cpu_system = (u64) (usage->system_seconds * 1000000 + usage->system_micros);
  record->peak_rss = (u64) usage->peak_kib * 1024;
  record->read = (u64) usage->read_blocks * 512;
  record->written = (u64) usage->written_blocks * 512;
}
