#include <boost/interprocess/managed_shared_memory.hpp>
