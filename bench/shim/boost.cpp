// Boost.Interprocess behind C functions: its default managed segment, whose allocator is a red-black
// tree of free blocks under a mutex that processes share.

#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/version.hpp>

#include <cstddef>
#include <cstdint>
#include <new>

using Segment = boost::interprocess::managed_shared_memory;

extern "C" {

std::uint32_t bench_boost_version() { return BOOST_VERSION; }

Segment* bench_boost_create(const char* name, std::size_t bytes) {
  try {
    return new Segment(boost::interprocess::create_only, name, bytes);
  } catch (...) {
    return nullptr;
  }
}

Segment* bench_boost_open(const char* name) {
  try {
    return new Segment(boost::interprocess::open_only, name);
  } catch (...) {
    return nullptr;
  }
}

void bench_boost_close(Segment* segment) { delete segment; }

void* bench_boost_allocate(Segment* segment, std::size_t bytes) {
  return segment->allocate(bytes, std::nothrow);
}

void bench_boost_free(Segment* segment, void* block) { segment->deallocate(block); }

std::uint64_t bench_boost_handle(Segment* segment, const void* block) {
  return static_cast<std::uint64_t>(segment->get_handle_from_address(block));
}

void* bench_boost_address(Segment* segment, std::uint64_t handle) {
  return segment->get_address_from_handle(static_cast<Segment::handle_t>(handle));
}

}
