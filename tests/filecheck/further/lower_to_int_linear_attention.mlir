// PASSES: quantize-weights,lower-to-int

builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    %q = llm.embedding %ids {table = #mqc.weight<"tq", "0", tensor<16x4xf32>>} : (tensor<?xi64>) -> tensor<?x4x!quant.uniform<u16:f32, 0.00004:32768>>
    %v = llm.embedding %ids {table = #mqc.weight<"tv", "0", tensor<16x6xf32>>} : (tensor<?xi64>) -> tensor<?x6x!quant.uniform<u16:f32, 0.001:32768>>
    %s = llm.embedding %ids {table = #mqc.weight<"ts", "0", tensor<16x2xf32>>} : (tensor<?xi64>) -> tensor<?x2x!quant.uniform<u16:f32, 0.0001:0>>
    // CHECK: %b = int.embedding
    %b = llm.embedding %ids {table = #mqc.weight<"tb", "0", tensor<16x2xf32>>} : (tensor<?xi64>) -> tensor<?x2x!quant.uniform<u8:f32, 0.004:0>>
    /// 2^7 times the largest product, 2^15 · 2^15, leave 2^6 products to a step of the state. A value has 8 more bits;
    /// what the state holds of it is Σ k·S times 0.00004² · 2^(6 + 8), which is 2^-15.2
    // CHECK-NEXT: %y.acc = int.linear_attention %q, %q, %v, %s, %b {acc_shift = {{[0-9]+}} : i64, beta_multiplier = {{[0-9]+}} : i64, beta_shift = -17 : i64, beta_zero = 0 : i64, decay_multiplier = {{.*}} tensor<2xsi32>>, decay_shift = {{.*}} tensor<2xsi8>>, heads = 2 : i64, k_zero = 32768 : i64, key_heads = 1 : i64, layer = 0 : i64, memory_multiplier = {{[0-9]+}} : i64, memory_shift = 0 : i64, q_zero = 32768 : i64, step_zero = 0 : i64, sum_shift = 15 : i64, update_shift = 14 : i64, v_zero = 32768 : i64, value_shift = 8 : i64} : (tensor<?x4xui16>, tensor<?x4xui16>, tensor<?x6xui16>, tensor<?x2xui16>, tensor<?x2xui8>) -> tensor<?x6xsi32>
    // CHECK-NEXT: %y = int.requant %y.acc
    %y = llm.linear_attention %q, %q, %v, %s, %b {delta = 1, heads = 2, key_heads = 1, layer = 0, rate = #mqc.weight<"r", "0", tensor<2xf32>>} : (tensor<?x4x!quant.uniform<u16:f32, 0.00004:32768>>, tensor<?x4x!quant.uniform<u16:f32, 0.00004:32768>>, tensor<?x6x!quant.uniform<u16:f32, 0.001:32768>>, tensor<?x2x!quant.uniform<u16:f32, 0.0001:0>>, tensor<?x2x!quant.uniform<u8:f32, 0.004:0>>) -> tensor<?x6x!quant.uniform<u16:f32, 0.001:32768>>
    /// without the delta rule nothing is read back, and the state has room for 2^12 of the largest products
    // CHECK-NEXT: %z.acc = int.linear_attention %q, %q, %y, %s {acc_shift = {{[0-9]+}} : i64, decay_multiplier = {{.*}} tensor<2xsi32>>, decay_shift = {{.*}} tensor<2xsi8>>, heads = 2 : i64, k_zero = 32768 : i64, key_heads = 1 : i64, layer = 1 : i64, q_zero = 32768 : i64, skip = {{.*}} tensor<2xsi32>>, skip_shift = {{[0-9]+}} : i64, step_zero = 0 : i64, update_shift = 19 : i64, v_zero = 32768 : i64, value_shift = 8 : i64} : (tensor<?x4xui16>, tensor<?x4xui16>, tensor<?x6xui16>, tensor<?x2xui16>) -> tensor<?x6xsi32>
    %z = llm.linear_attention %q, %q, %y, %s {delta = 0, heads = 2, key_heads = 1, layer = 1, rate = #mqc.weight<"r", "0", tensor<2xf32>>, skip = #mqc.weight<"k", "0", tensor<2xf32>>} : (tensor<?x4x!quant.uniform<u16:f32, 0.00004:32768>>, tensor<?x4x!quant.uniform<u16:f32, 0.00004:32768>>, tensor<?x6x!quant.uniform<u16:f32, 0.001:32768>>, tensor<?x2x!quant.uniform<u16:f32, 0.0001:0>>) -> tensor<?x6x!quant.uniform<u16:f32, 0.001:32768>>
    %l = llm.linear %z {range = array<f64: -12.0, 10.0>, weight = #mqc.weight<"wl", "0", tensor<16x6xf32>>} : (tensor<?x6x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
