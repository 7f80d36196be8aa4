// PASSES: lower-to-htp{tokens=4}

// CHECK: builtin.module attributes {mqc.level = "htp"
// CHECK-NEXT: func.func @main
builtin.module attributes {mqc.level = "int", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xsi32> {
    %x = int.embedding %ids {multiplier = #mqc.weight<"m", "0", tensor<16xsi32>>, shift = #mqc.weight<"s", "0", tensor<16xsi8>>, table = #mqc.weight<"table", "0", tensor<16x8xsi8>>, zero_point = 32768} : (tensor<?xi64>) -> tensor<?x8xui16>
    %n.acc = int.rms_norm %x {epsilon = 80, groups = 1, x_zero = 32768} : (tensor<?x8xui16>) -> tensor<?x8xsi32>
    %n = int.requant %n.acc {multiplier = #mqc.weight<"nm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ns", "0", tensor<1xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    /// matrices of @main become the records that the functions read
    // CHECK: int.linear {{.*}}layout = "records.s4", weight = #mqc.weight<"wq", "[[WQ:[0-9a-f]+]]", tensor<1x640xui8>>
    %q.acc = int.linear %n {acc_shift = 0, bias = #mqc.weight<"bq", "0", tensor<8xsi32>>, weight = #mqc.weight<"wq", "0", tensor<8x8xsi8>>, weight_bits = 4, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x8xsi32>
    %q = int.requant %q.acc {multiplier = #mqc.weight<"qm", "0", tensor<8xsi32>>, shift = #mqc.weight<"qs", "0", tensor<8xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %r.acc = int.rope %q, %positions {cos = #mqc.weight<"cos", "0", tensor<8x2xsi16>>, sin = #mqc.weight<"sin", "0", tensor<8x2xsi16>>, head_dim = 4, interleaved = 0, x_zero = 128} : (tensor<?x8xui8>, tensor<?xi64>) -> tensor<?x8xsi32>
    %r = int.requant %r.acc {multiplier = #mqc.weight<"qm", "0", tensor<1xsi32>>, shift = #mqc.weight<"ns", "0", tensor<1xsi8>>, zero_point = 128} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %k = int.lut %q {table = #mqc.weight<"lut", "0", tensor<256xui8>>} : (tensor<?x8xui8>) -> tensor<?x8xui8>
    %a = int.attention %r, %k, %q {layer = 0, heads = 2, kv_heads = 2, q_zero = 3, k_zero = 4, v_zero = 5, score_multiplier = 1073741824, score_shift = 2, multiplier = 1073741824, shift = 14, zero_point = 128} : (tensor<?x8xui8>, tensor<?x8xui8>, tensor<?x8xui8>) -> tensor<?x8xui8>
    %l.acc = int.linear %a {acc_shift = 0, bias = #mqc.weight<"bl", "0", tensor<16xsi32>>, weight = #mqc.weight<"wl", "0", tensor<16x8xsi8>>, weight_bits = 8, x_zero = 128} : (tensor<?x8xui8>) -> tensor<?x16xsi32>
    %l = int.requant %l.acc {multiplier = #mqc.weight<"lm", "0", tensor<16xsi32>>, shift = #mqc.weight<"ls", "0", tensor<16xsi8>>, zero_point = 0} : (tensor<?x16xsi32>) -> tensor<?x16xsi32>
    func.return %l : tensor<?x16xsi32>
  }
}

/// the functions stand behind @main
// CHECK-LABEL: func.func @prefill_4(%0: tensor<4xi64>, %1: tensor<4xi64>) -> tensor<4x16xsi32>
// CHECK: %x = htp.gather_tokens %0, %table, %m, %s {zero_point = 32768 : i64}
/// a product and its requant are one op; its weights are those of @main
// CHECK: %n = htp.rms_norm %x, %n.scale {epsilon = 80 : i64, groups = 1 : i64, x_zero = 32768 : i64, zero_point = 128 : i64}
// CHECK: %wq = htp.constant {value = #mqc.weight<"wq", "[[WQ]]", tensor<1x640xui8>>}
// CHECK-NEXT: %q = htp.fully_connected %n, %wq {acc_shift = 0 : i64, first = 0 : i64, group = 0 : i64, outputs = 8 : i64, weight_bits = 4 : i64
/// rows of rotary tables are gathered by position
// CHECK: %cos_1 = htp.gather_positions %1, %cos
// CHECK: %r = htp.rotary_embedding %q, %cos_1, %sin_1, %r.scale
// CHECK: %k = htp.element_wise_neuron %q, %lut
/// attention goes head by head over the cache, whose capacity is a multiple of 32
// CHECK: %a.keys_1 = htp.cache_write_keys %k, %a.keys {capacity = 32 : i64, head_dim = 4 : i64, q_zero = 3 : i64}
// CHECK: %a_1 = htp.strided_slice %a.keys_1 {first = 0 : i64}
// CHECK: %a.scores = htp.mat_mul_keys %r, %a_1 {{.*}} -> tensor<4x32xsi32>
// CHECK-NEXT: %a.probabilities = htp.masked_softmax %a.scores, %exponentials
// CHECK-NEXT: %a_3 = htp.mat_mul_values %a.probabilities, %a_2, %a {
// CHECK: htp.strided_slice %a.keys_1 {first = 1 : i64}
// CHECK: htp.mat_mul_values %a.probabilities_1, %a_5, %a_3 {
// CHECK: func.return %l : tensor<4x16xsi32>
// CHECK-LABEL: func.func @decode(%0: tensor<1xi64>
