// NVML, as far as torch asks it: one device, without fabric or links.
extern "C" {
int nvmlInit_v2(){return 0;} int nvmlShutdown(){return 0;} const char* nvmlErrorString(int){return "fake";}
int nvmlDeviceGetHandleByPciBusId_v2(const char*,void**d){static int x;*d=&x;return 0;} int nvmlDeviceGetHandleByIndex_v2(unsigned,void**d){static int x;*d=&x;return 0;}
int nvmlDeviceGetCount_v2(unsigned*n){*n=1;return 0;}
int nvmlDeviceGetNvLinkRemoteDeviceType(){return 3;} int nvmlDeviceGetNvLinkRemotePciInfo_v2(){return 3;} int nvmlDeviceGetComputeRunningProcesses(void*,unsigned*n,void*){*n=0;return 0;} int nvmlDeviceGetComputeRunningProcesses_v3(void*,unsigned*n,void*){*n=0;return 0;}
int nvmlSystemGetCudaDriverVersion_v2(int*v){*v=13000;return 0;} int nvmlDeviceGetGpuFabricInfoV(){return 0;}
}
