// PASSES: quantize-weights,lower-to-int

builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    // CHECK: %x = int.embedding
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x8xf32>>} : (tensor<?xi64>) -> tensor<?x8x!quant.uniform<u16:f32, 0.0001:32768>>
    /// a bias that no product took up is added to the directions
    // CHECK-NEXT: %n.direction = int.layer_norm %x {bias = {{.*}} tensor<8xsi32>>, bias_shift = {{.*}} tensor<8xsi8>>, epsilon = 8000 : i64, groups = 1 : i64, x_zero = 32768 : i64} : (tensor<?x8xui16>) -> tensor<?x8xsi32>
    /// what they then are in real numbers is another in each channel, without a gain too
    // CHECK-NEXT: %n = int.requant %n.direction {multiplier = {{.*}} tensor<8xsi32>>, {{.*}} zero_point = 128 : i64} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %n = llm.layer_norm %x {bias = #mqc.weight<"b", "0", tensor<8xf32>>, eps = 2.44140625e-09, groups = 1} : (tensor<?x8x!quant.uniform<u16:f32, 0.0001:32768>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    // CHECK-NEXT: int.add %n, %x
    %a = llm.add %n, %x : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>, tensor<?x8x!quant.uniform<u16:f32, 0.0001:32768>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    %l = llm.linear %a {range = array<f64: -12.0, 10.0>, weight = #mqc.weight<"wl", "0", tensor<16x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
