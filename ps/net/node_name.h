// What a node calls itself, for people. Thread-safe.
#ifndef PARLEY_PS_NET_NODE_NAME_H_
#define PARLEY_PS_NET_NODE_NAME_H_

#include <string>

namespace parley {

// "host:4242", of this host and process.
std::string HostAndPid();

}  // namespace parley

#endif  // PARLEY_PS_NET_NODE_NAME_H_
