// The number that somebody wrote into a float field of an experiment file.
#ifndef PARLEY_PS_TABLE_DECIMAL_H_
#define PARLEY_PS_TABLE_DECIMAL_H_

namespace parley {

// The double nearest to the shortest decimal that reads back as `value`: 0.999f gives 0.999.
//
// Widening alone would give 0.99900001287..., and 1 - beta2 would be off by 1.3e-5 of itself, which
// is more than everything else that separates these rules from PyTorch's. Not finite: as it is.
double DecimalOf(float value);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_DECIMAL_H_
