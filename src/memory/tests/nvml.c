/* As much of NVIDIA's management library as memory takes. One function of the newer ones is missing on purpose where
   BERTH_OLD is defined: what an old driver does. */
#include <stdlib.h>
#include <string.h>

typedef struct { int index; } device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;

static device devices[] = {{0}, {1}};
static const char *names[] = {"GPU-00000000-0000-0000-0000-00000000000a", "GPU-00000000-0000-0000-0000-00000000000b"};
static const unsigned long long gib = 1ull << 30;

int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "550.00", length); return 0; }
int nvmlSystemGetNVMLVersion(char *text, unsigned length) { strncpy(text, "12.550", length); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **handle) {
    if (index > 1) return 2;
    *handle = &devices[index];
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device **handle) {
    for (int at = 0; at < 2; at++)
        if (!strcmp(uuid, names[at])) { *handle = &devices[at]; return 0; }
    return 6;
}
int nvmlDeviceGetIndex(device *handle, unsigned *index) { *index = handle->index; return 0; }
#ifndef BERTH_OLD
int nvmlDeviceGetMemoryInfo_v2(device *handle, memory *info) {
    const char *lost = getenv("BERTH_TEST_LOST_GPU");
    if (lost && atoi(lost) == handle->index) return 15;
    info->total = (16 + handle->index) * gib;
    info->reserved = gib / 2;
    info->used = 4 * gib;
    info->free = info->total - info->used - info->reserved;
    return 0;
}
#endif
int nvmlDeviceGetComputeRunningProcesses_v3(device *handle, unsigned *count, process *found) {
    unsigned there = handle->index == 0 ? 2 : 0;
    if (*count < there) { *count = there; return there ? 7 : 0; }
    if (there) {
        found[0] = (process){ 4242, 3 * gib, 0xFFFFFFFF, 0xFFFFFFFF };
        found[1] = (process){ 1, gib, 0xFFFFFFFF, 0xFFFFFFFF };
    }
    *count = there;
    return 0;
}
