// What the program's C++ code gets from its own machine's libstdc++, and not from that of GCC 8. `xtask/src/oldest` links it
// into the program for packages.
//
// Exceptions cross from libtorch to the shim, so libstdc++ itself must stay a shared library.

// The headers then leave the instantiations below to this file.
#define _GLIBCXX_EXTERN_TEMPLATE 0

#include <new>
#include <sstream>
#include <string>
#include <string_view>

// New in GCC 9: the constructor without arguments, and the conversion.
template std::ostringstream::basic_ostringstream();
template std::string::operator std::string_view() const noexcept;

namespace std {

// New in GCC 11: what `new T[n]` throws for an `n` that is too large.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std
