// Kernels of the CPU in place of those of CUDA, on the memory of runtime.cpp.
//
// Each operation of torch that has a kernel for CUDA runs the one for the CPU, on tensors of the CPU that have the same
// memory. As on a device, operations refuse tensors of other devices, and those whose results have a size that depends
// on values wait for the device. A captured operation is recorded with the addresses of its memory, not its tensors, so
// a graph whose memory was freed and used again computes nonsense, as it would on a device.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

using Action = std::function<void()>;
using Stack = torch::jit::Stack;
using c10::DispatchKey;
using c10::IValue;

extern "C" bool emulated_cuda_captures(cudaStream_t);
extern "C" void emulated_cuda_record(cudaStream_t, const Action&);
extern "C" void emulated_cuda_restore(cudaStream_t, const Action&);

namespace {

// Operations that accept tensors of the CPU next to those of a device: indices, and steps of optimizers.
const std::set<std::string> MIXED = {
    "aten::index.Tensor",      "aten::_index_put_impl_",     "aten::index_put",          "aten::_foreach_add.Tensor",
    "aten::_foreach_mul.Tensor", "aten::_foreach_add_.Tensor", "aten::_foreach_mul_.Tensor", "aten::_foreach_copy_"};

// Operations with kernels of CUDA that only handle memory or metadata, or that are defined below.
const std::set<std::string> KEPT = {
    "aten::empty.memory_format", "aten::empty_strided", "aten::resize_",   "aten::set_",
    "aten::set_.source_Storage", "aten::set_.source_Storage_storage_offset", "aten::set_.source_Tensor",
    "aten::_local_scalar_dense", "aten::_pin_memory",   "aten::is_pinned", "aten::record_stream",
    "aten::copy_"};

// Operations without a kernel of CUDA of their own: those that they call differ between devices.
const std::set<std::string> ADDED = {"aten::convolution", "aten::convolution_backward"};

// Operations whose results have a size that depends on values, and decompositions, which wait for their status.
const std::vector<std::string> WAITING = {"aten::nonzero",  "aten::masked_select", "aten::_unique",     "aten::unique_",
                                          "aten::bincount", "aten::equal",         "aten::linalg_inv_", "aten::linalg_l",
                                          "aten::_linalg_e", "aten::_linalg_s"};

std::string name_of(const c10::OperatorHandle& op) {
    const auto& name = op.operator_name();
    return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

// Return a tensor of the CPU with the memory of a tensor of a device, which it does not keep alive.
at::Tensor on_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    const auto options = tensor.options().device(at::kCPU).requires_grad(false).pinned_memory(false);
    void* data = const_cast<void*>(tensor.const_data_ptr());
    return at::from_blob(data, tensor.sizes(), tensor.strides(), [](void*) {}, options, at::Device(at::kCPU));
}

at::Tensor on_device(const at::Tensor& tensor, at::Device device) {
    if (!tensor.defined()) return tensor;
    at::Tensor copy = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device));
    on_cpu(copy).copy_(tensor);
    return copy;
}

// Return the tensors of an argument or a result.
std::vector<at::Tensor> tensors_of(const IValue& value) {
    if (value.isTensor()) return {value.toTensor()};
    if (value.isTensorList()) return value.toTensorVector();
    std::vector<at::Tensor> tensors;
    if (value.isOptionalTensorList())
        for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList())
            tensors.push_back(tensor.value_or(at::Tensor()));
    return tensors;
}

// Return an argument with tensors of the CPU.
IValue on_cpu(const IValue& value) {
    if (value.isTensor()) return on_cpu(value.toTensor());
    if (value.isTensorList()) {
        c10::List<at::Tensor> list;
        for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(on_cpu(tensor));
        return list;
    }
    if (value.isOptionalTensorList()) {
        c10::List<std::optional<at::Tensor>> list;
        for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList())
            list.push_back(tensor ? std::optional(on_cpu(*tensor)) : std::nullopt);
        return list;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return at::Device(at::kCPU);
    if (value.isGenerator()) return IValue();  // Random draws from the default one
    return value;
}

// Return the device of the arguments. Raises if they are on several.
at::Device device_of(const std::string& name, const Stack& arguments) {
    std::optional<at::Device> device;
    const at::Tensor* other = nullptr;
    std::vector<at::Tensor> tensors;
    for (const IValue& argument : arguments) {
        if (argument.isDevice() && argument.toDevice().is_cuda() && argument.toDevice().has_index())
            device = argument.toDevice();
        for (const at::Tensor& tensor : tensors_of(argument)) tensors.push_back(tensor);
    }
    for (const at::Tensor& tensor : tensors) {
        if (!tensor.defined()) continue;
        if (!tensor.is_cuda() && tensor.dim() == 0) continue;  // a number
        if (tensor.is_cuda() && !device) device = tensor.device();
        if (device && tensor.device() != *device) other = &tensor;
        if (!tensor.is_cuda()) other = &tensor;
    }
    if (!device) return at::Device(at::kCUDA, c10::cuda::current_device());
    TORCH_CHECK(!other || MIXED.count(name), "Expected all tensors to be on the same device, but found at least two ",
                "devices, ", *device, " and ", other ? other->device() : *device, "! (", name, ")");
    return *device;
}

bool waits_for_device(const std::string& name, const Stack& arguments) {
    if (name.find("static") != std::string::npos || name.find("linalg_lu_solve") != std::string::npos) return false;
    for (const std::string& prefix : WAITING)
        if (name.rfind(prefix, 0) == 0) return true;
    if (name == "aten::repeat_interleave.Tensor") return arguments[1].isNone();
    if (name != "aten::index.Tensor" && name != "aten::_index_put_impl_") return false;
    for (const at::Tensor& index : tensors_of(arguments[1]))
        if (index.defined() && (index.scalar_type() == at::kBool || index.scalar_type() == at::kByte)) return true;
    return false;
}

// Random numbers of the CPU that depend on the seed and the offset of the generator of a device.
class Random {
  public:
    // captured: whether the numbers do not matter, since no kernel runs in a capture. Its generator cannot be read.
    Random(const c10::OperatorHandle& op, at::Generator generator, bool captured)
        : used_(op.hasTag(at::Tag::nondeterministic_seeded)) {
        if (!used_) return;
        before_ = cpu_.get_state();
        if (captured) return;
        std::scoped_lock lock(generator.mutex());
        cpu_.set_current_seed(generator.current_seed() * 6364136223846793005ULL + generator.get_offset());
        generator.set_offset(generator.get_offset() + 4);
    }
    ~Random() {
        if (used_) cpu_.set_state(before_);
    }

  private:
    bool used_;
    at::Generator cpu_ = at::globalContext().defaultGenerator(at::Device(at::kCPU));
    at::Tensor before_;
};

at::Generator generator_of(const Stack& arguments, at::Device device) {
    for (const IValue& argument : arguments)
        if (argument.isGenerator() && argument.toGenerator().defined()) return argument.toGenerator();
    return at::globalContext().defaultGenerator(device);
}

// Run the kernel of the CPU.
Stack call(const c10::OperatorHandle& op, Stack arguments) {
    at::NoGradGuard no_grad;
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), &arguments);
    return arguments;
}

void copy_memory(const IValue& from, const IValue& to) {
    const std::vector<at::Tensor> sources = tensors_of(from), targets = tensors_of(to);
    for (size_t i = 0; i < sources.size(); ++i)
        if (sources[i].defined() && sources[i].const_data_ptr() != targets[i].const_data_ptr())
            targets[i].copy_(sources[i]);
}

bool writes(const c10::OperatorHandle& op, size_t index) {
    const auto& argument = op.schema().arguments()[index];
    if (op.schema().name() == "aten::native_batch_norm") return index == 3 || index == 4;  // its schema omits them
    return argument.alias_info() && argument.alias_info()->isWrite();
}

// Restore the memory of tensors at the end of the capture.
void restore_after_capture(cudaStream_t stream, const IValue& written) {
    for (const at::Tensor& tensor : tensors_of(written)) {
        if (!tensor.defined() || !tensor.is_cuda() || !tensor.numel()) continue;
        at::Tensor memory = on_cpu(tensor), before = memory.clone();
        emulated_cuda_restore(stream, [=] { memory.copy_(before); });
    }
}

// Return the tensors of a device for the results of a kernel of the CPU.
IValue result_of(const c10::OperatorHandle& op, size_t index, const IValue& result, const Stack& arguments,
                 at::Device device) {
    const auto* alias = op.schema().returns()[index].alias_info();
    if (alias)  // an argument that was written
        for (size_t i = 0; i < arguments.size(); ++i) {
            const auto* other = op.schema().arguments()[i].alias_info();
            if (other && *other == *alias) return arguments[i];
        }
    if (result.isTensor()) return on_device(result.toTensor(), device);
    if (!result.isTensorList()) return result;
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : result.toTensorVector()) list.push_back(on_device(tensor, device));
    return list;
}

// Return the argument of a captured operation: numbers on the CPU stay as they are now.
IValue frozen(const IValue& argument, const IValue& of_cpu) {
    if (!argument.isTensor() || !argument.toTensor().defined() || argument.toTensor().is_cuda()) return of_cpu;
    at::Tensor copy = of_cpu.toTensor().clone();
    if (argument.toTensor().unsafeGetTensorImpl()->is_wrapped_number())  // of Python, which does not change the type
        copy.unsafeGetTensorImpl()->set_wrapped_number(true);
    return copy;
}

// The kernel of all operations.
void run(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    const size_t count = op.schema().arguments().size();
    const Stack arguments(stack->end() - count, stack->end());
    stack->erase(stack->end() - count, stack->end());
    const std::string name = name_of(op);
    const at::Device device = device_of(name, arguments);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
    if (waits_for_device(name, arguments)) c10::cuda::stream_synchronize(stream);
    const bool captured = emulated_cuda_captures(stream);

    Stack of_cpu;
    std::vector<size_t> resized;  // out arguments that are empty, which the kernel resizes
    for (size_t i = 0; i < count; ++i) {
        if (captured && writes(op, i)) restore_after_capture(stream, arguments[i]);
        of_cpu.push_back(on_cpu(arguments[i]));
        if (captured && !writes(op, i)) of_cpu[i] = frozen(arguments[i], of_cpu[i]);
        if (op.schema().arguments()[i].is_out() && arguments[i].isTensor() && !arguments[i].toTensor().numel()) {
            of_cpu[i] = at::empty({0}, of_cpu[i].toTensor().options());
            resized.push_back(i);
        }
    }
    const at::Generator generator = generator_of(arguments, device);
    Stack results;
    {
        const Random random(op, generator, captured);
        results = call(op, of_cpu);
    }
    for (const size_t i : resized) {
        const at::Tensor source = of_cpu[i].toTensor(), target = arguments[i].toTensor();
        target.resize_(source.sizes());
        target.unsafeGetTensorImpl()->set_sizes_and_strides(source.sizes(), source.strides());
        of_cpu[i] = on_cpu(target).copy_(source);
    }
    Stack memory;
    for (size_t i = 0; i < results.size(); ++i) {
        stack->push_back(result_of(op, i, results[i], arguments, device));
        memory.push_back(on_cpu(stack->back()));
    }
    if (captured)
        emulated_cuda_record(stream, [=] {
            const Random random(op, generator, false);
            const Stack again = call(op, of_cpu);
            for (size_t i = 0; i < again.size(); ++i) copy_memory(again[i], memory[i]);
        });
}

// Copies between devices wait for the stream, unless they are non_blocking. No graph holds one to or from memory that is
// not pinned.
at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream((self.is_cuda() ? self : source).get_device());
    if (self.device() != source.device() && self.numel()) {
        const at::Tensor& host = self.is_cuda() ? source : self;
        const bool captured = emulated_cuda_captures(stream);
        if (!non_blocking || (captured && !host.is_pinned())) c10::cuda::stream_synchronize(stream);
    }
    const at::Tensor target = on_cpu(self), values = on_cpu(source);
    if (emulated_cuda_captures(stream)) {
        restore_after_capture(stream, self);
        emulated_cuda_record(stream, [=] {
            at::NoGradGuard no_grad;
            at::AutoDispatchBelowADInplaceOrView below;
            target.copy_(values);
        });
    }
    target.copy_(values);
    return self;
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) { library.impl("copy_", copy_); }

bool is_replaced(const c10::OperatorHandle& op) {
    const std::string name = name_of(op);
    if (ADDED.count(name)) return true;
    if (name.rfind("aten::", 0) != 0) return false;  // such as those of torch.distributed
    if (KEPT.count(name) || !op.hasKernelForDispatchKey(DispatchKey::CUDA)) return false;
    for (const auto& result : op.schema().returns())
        if (result.alias_info() && !result.alias_info()->isWrite()) return false;  // a view
    for (const DispatchKey key : {DispatchKey::CPU, DispatchKey::CompositeExplicitAutograd,
                                  DispatchKey::CompositeExplicitAutogradNonFunctional})
        if (op.hasKernelForDispatchKey(key)) return true;
    return false;
}

std::vector<c10::RegistrationHandleRAII> replace_kernels() {
    std::vector<c10::RegistrationHandleRAII> registered;
    auto& dispatcher = c10::Dispatcher::singleton();
    for (const auto& name : dispatcher.getAllOpNames()) {
        const auto op = dispatcher.findSchema(name);
        if (op && is_replaced(*op))
            registered.push_back(dispatcher.registerImpl(
                name, DispatchKey::CUDA, c10::KernelFunction::makeFromBoxedFunction<&run>(), std::nullopt, nullptr, ""));
    }
    // Attention by matrix products, convolutions by `convolution`: these have kernels of CUDA alone.
    at::globalContext().setSDPUseFlash(false);
    at::globalContext().setSDPUseMemEfficient(false);
    at::globalContext().setSDPUseCuDNN(false);
    at::globalContext().setUserEnabledCuDNN(false);
    return registered;
}

const auto replaced = replace_kernels();  // when this library is loaded

}  // namespace
