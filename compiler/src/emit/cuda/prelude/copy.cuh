// Copies from global to shared memory that go on while the thread does. Without `inside` zeros arrive, and `from` is not read.
template <int bytes> DEVICE void copy_async(void* to, const void* from) {
    const u32 place = (u32)__cvta_generic_to_shared(to);
    if (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(place), "l"(from) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" :: "r"(place), "l"(from), "n"(bytes) : "memory");
}
template <int bytes> DEVICE void copy_async(void* to, const void* from, bool inside) {
    const u32 place = (u32)__cvta_generic_to_shared(to), read = inside ? bytes : 0;
    if (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(place), "l"(from), "r"(read) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" :: "r"(place), "l"(from), "n"(bytes), "r"(read) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending> DEVICE void wait_copies() { asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory"); }
