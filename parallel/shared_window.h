// SharedWindow: a part of memory for each rank of a run of neighbours, read by the others in place: one copy, no message.
//
// A rank writes its own part only. What it wrote before a Barrier the others see after it; to write again what others may
// still read takes another Barrier. Made by Communicator::CreateWindow. The rank's communication thread calls Barrier; all
// its threads may read and write.
#pragma once

#include <cstddef>

namespace latentmesh {

class SharedWindow {
 public:
  virtual ~SharedWindow() = default;
  virtual int rank() const = 0;          // within the run
  virtual int size() const = 0;
  virtual char* part(int rank) = 0;      // `bytes` of CreateWindow, zeros at first, aligned to 64
  // All ranks of the group (of all runs) make the same calls. Throws Error(kDeadlineExceeded) naming the ranks waited for.
  virtual void Barrier(const char* call) = 0;
};

}  // namespace latentmesh
